"""Write README.md's table of results anew from the newest result files, or check that it is current.

.venv/bin/python docs/generate_results.py [--check]
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def newest(theme: str) -> tuple[Path, dict[str, Any]]:
    """The newest result file of a benchmark."""
    path = sorted((ROOT / "benchmarks" / "results").glob(f"{theme}_*.json"), key=lambda path: path.stem.rpartition("_")[2])[-1]
    return path, json.loads(path.read_text(encoding="utf-8"))


def peers_rows() -> tuple[list[tuple[str, str]], Path]:
    """Epoch times beside RecTools, and the file that they come from."""
    path, result = newest("peers")
    titles = {
        "ml-1m-full": "An epoch of BERT4Rec, length 200, full softmax, seconds: RecTools {} / Passerelle",
        "ml-1m-sampled": "The same with 256 sampled negatives",
        "beauty-full": "The same on Amazon Beauty, length 50, full softmax",
    }
    rows = []
    for name, title in titles.items():
        theirs_s, ours_s = (statistics.median(result["cases"][name][side]) for side in ("rectools_epoch_s", "ours_epoch_s"))
        rows.append((title.format(result["peer"]["rectools"]), f"{theirs_s:.0f} / {ours_s:.1f}"))
    return rows, path


def quality_rows() -> tuple[list[tuple[str, str]], Path]:
    """NDCG@10 beside popularity and the best in print, mean and standard deviation over seeds, and the file that they come from."""
    path, result = newest("quality")
    titles = {
        "bert4rec": ("BERT4Rec, MovieLens-1M, 3,416 items", "train"),
        "sasrec": ("SASRec, the same", "train"),
        "sasrec_time": ("SASRec with time, MovieLens-1M, 3,706 items", "train"),
        "sasrec_beauty": ("SASRec, Amazon Beauty, refit on train and validation", "refit"),
    }
    rows = []
    for name, (title, kind) in titles.items():
        if name not in result["cases"]:
            continue
        case = result["cases"][name]
        found, popularity = case[kind], result["baselines"][case["data"]]["popularity"]
        mean, deviation = (found.get(statistic, {}).get("ndcg@10") for statistic in ("mean", "standard_deviation"))
        ours = f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"
        seeds = "1 seed" if len(found["runs"]) == 1 else f"{len(found['runs'])} seeds"
        values = f"{popularity['ndcg@10']:.4f} / {case['published_ndcg@10']:.4f} / {ours}"
        rows.append((f"Test NDCG@10, {title}: popularity / best in print / Passerelle, {seeds}", values))
    return rows, path


def link(path: Path) -> str:
    """To a file of the repository, in Markdown."""
    return f"[{path.name}]({path.relative_to(ROOT)})"


def table() -> str:
    """The table, in Markdown, with the files that every figure in it comes from."""
    path, result = newest("main_job")
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
    quality, quality_path = quality_rows()
    peers, peers_path = peers_rows()
    lines = [
        f"| MovieLens-1M, {machine['cores']} CPU cores, {machine['date'][:10]} | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in [*rows, *quality, *peers]),
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Figures are from {link(path)} (`.venv/bin/python -m benchmarks.main_job`), {link(quality_path)}",
            f"(`.venv/bin/python -m benchmarks.quality`: leave-one-out, whole catalogue, seen items left out) and {link(peers_path)}",
            "(`make bench-peers`: medians of runs in turns).",
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
