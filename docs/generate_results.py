"""Write README.md's table of results anew from the newest result file, or check that it is current.

.venv/bin/python docs/generate_results.py [--check]
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def table() -> str:
    """The table, in Markdown, with the file that every figure in it comes from."""
    path = sorted((ROOT / "benchmarks" / "results").glob("main_job_*.json"), key=lambda path: path.stem.rpartition("_")[2])[-1]
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    machine, steps_s, offline = result["environment"], result["step_seconds"], result["offline"]
    worst = max(layer[name] for layer in result["parity"].values() for name in layer if name.startswith("max_"))
    rows = [
        ("`prepare`: 1,000,209 ratings to a dataset, seconds", f"{steps_s['prepare']:.1f}"),
        (f"`train`: {result['training']['epochs']} epochs of BERT4Rec on local Ray, seconds", f"{steps_s['train']:.0f}"),
        ("Test NDCG@10, full catalogue: popularity", f"{offline['popularity']['ndcg@10']:.4f}"),
        ("Test NDCG@10: BERT4Rec", f"{offline['model']['ndcg@10']:.4f}"),
        ("Test NDCG@10: BERT4Rec and ranker", f"{offline['ranker']['ndcg@10']:.4f}"),
        ("Largest score difference from torch and LightGBM: ONNX Runtime, Triton, HTTP", f"{worst:.0e}"),
        ("`serve`: ready after, seconds", f"{result['ready_seconds']:.1f}"),
        ("One request over HTTP, p50 / p99, ms", f"{result['recommend']['p50_ms']:.1f} / {result['recommend']['p99_ms']:.1f}"),
        (
            "A Ray Serve deployment that does nothing, behind Serve's proxy, same run, p50 / p99, ms",
            f"{result['noop']['p50_ms']:.1f} / {result['noop']['p99_ms']:.1f}",
        ),
    ]
    lines = [
        f"| MovieLens-1M, {machine['cores']} CPU cores, {machine['date'][:10]} | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Every figure is from [{path.name}]({path.relative_to(ROOT)}); `.venv/bin/python -m benchmarks.main_job` makes it anew.",
        ]
    )


def main() -> None:
    """Rewrite the part of the README between the markers; with `--check`, fail where that would change it."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    current = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if current != text:
            sys.exit("README.md: its results are not those of the newest result file: run `make docs`")
    else:
        README.write_text(current, encoding="utf-8")


if __name__ == "__main__":
    main()
