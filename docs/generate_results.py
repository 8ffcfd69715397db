"""Write the tables of results in README.md, training.md and decisions.md anew from the newest result files, or check that they are current.

.venv/bin/python docs/generate_results.py [--check]
"""

import json
import statistics
from pathlib import Path
from typing import Any

from pages import write_or_check

ROOT = Path(__file__).resolve().parents[1]
Row = tuple[str, str, str]
"""What was measured, what stands beside it, and the figure of ours."""

CASES = {
    "bert4rec": ("BERT4Rec, MovieLens-1M, 3,416 items", "train"),
    "two_tower": ("two towers, the same data", "train"),
    "sasrec": ("SASRec, the same data", "train"),
    "sasrec_uniform": ("the same, 256 uniform negatives of each position instead of all items", "train"),
    "sasrec_mixed": ("the same, half of them targets of the step", "train"),
    "sasrec_time": ("SASRec with time, MovieLens-1M, all 3,706 items", "train"),
    "sasrec_beauty": (
        "SASRec for short histories, Amazon Beauty, trained once more on validation too",
        "refit",
    ),
}
PEERS = {
    "ml-1m-full": "BERT4Rec, length 200, full softmax",
    "ml-1m-sampled": "the same, 256 sampled negatives",
    "beauty-full": "Amazon Beauty, length 50, full softmax",
}


def newest(theme: str) -> tuple[Path, dict[str, Any]]:
    """The newest result file of a benchmark on a CPU."""
    path = sorted(
        (ROOT / "benchmarks" / "results").glob(f"{theme}_cpu*.json"),
        key=lambda path: path.stem.rpartition("_")[2],
    )[-1]
    return path, json.loads(path.read_text(encoding="utf-8"))


def quality_rows() -> tuple[list[Row], Path]:
    """NDCG@10 beside the best in print, the best baseline and popularity; mean and standard deviation over seeds."""
    path, result = newest("quality")
    rows = []
    for name, (title, kind) in CASES.items():
        case = result["cases"].get(name, {})
        if kind not in case:
            continue
        baselines = {
            baseline: values["ndcg@10"] for baseline, values in result["baselines"][case["data"]].items()
        }
        best = max(baselines, key=lambda baseline: baselines[baseline])
        simple = f"best baseline ({best}) {baselines[best]:.4f}, popularity {baselines['popularity']:.4f}"
        beside = (
            simple
            if case["published_ndcg@10"] is None
            else f"published {case['published_ndcg@10']:.4f}, {simple}"
        )
        mean, deviation = (
            case[kind].get(statistic, {}).get("ndcg@10") for statistic in ("mean", "standard_deviation")
        )
        ours = f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"
        seeds = len(case[kind]["runs"])
        rows.append((f"Test NDCG@10, {title}", beside, f"{ours} ({seeds} seed{'s' if seeds > 1 else ''})"))
    for name in ("bert4rec", "sasrec"):
        runs = result["cases"].get(name, {}).get("train", {}).get("runs", [])
        reached_s = [run["seconds_until_rectools_ndcg"] for run in runs if run["seconds_until_rectools_ndcg"]]
        if reached_s:
            (threads,) = {run["threads"] for run in runs}
            on = "one thread" if threads == 1 else f"{threads} threads"
            title = f"Training on {on} until validation NDCG@10 is 0.1618, {CASES[name][0].partition(',')[0]}"
            rows.append(
                (
                    title,
                    "what RecTools publishes for its BERT4Rec, on test",
                    f"{statistics.median(reached_s) / 60:.0f} min",
                )
            )
    return rows, path


def peers_rows() -> tuple[list[Row], Path]:
    """Epoch times beside RecTools, medians of runs in turns, with the smallest and largest ratio of a turn."""
    path, result = newest("peers")
    peer, rows = result["peer"]["rectools"], []
    for name, title in PEERS.items():
        case = result["cases"][name]
        theirs_s, ours_s = (statistics.median(case[side]) for side in ("rectools_epoch_s", "ours_epoch_s"))
        ratios = f"{min(case['ratios']):.0f} to {max(case['ratios']):.0f} times"
        rows.append(
            (
                f"An epoch, {title}, {case['num_blocks']} blocks",
                f"RecTools {peer} {theirs_s:.0f} s",
                f"{ours_s:.1f} s, {ratios}",
            )
        )
    return rows, path


def link(path: Path, to_root: str = "") -> str:
    """To a file of the repository, in Markdown."""
    return f"[{path.name}]({to_root}{path.relative_to(ROOT)})"


def lines_of(rows: list[Row], title: str) -> list[str]:
    """A table in Markdown."""
    return [
        f"| {title} | Beside it | Passerelle |",
        "|---|---|---:|",
        *(f"| {name} | {beside} | {ours} |" for name, beside, ours in rows),
    ]


def results() -> str:
    """What the first screen shows, with the files that every figure in it comes from."""
    quality, quality_path = quality_rows()
    peers, peers_path = peers_rows()
    load, load_path = load_rows()
    searches, retrieval_path = retrieval_rows()
    machine = newest("serving_load")[1]["environment"]
    return "\n".join(
        [
            *lines_of([*quality, *peers, *load, searches[3]], f"{machine['cores']} CPU cores"),
            "",
            f"From {link(quality_path)} (leave-one-out, whole catalogue, seen items left out; `benchmarks/quality.py` says where the",
            f"published figures are from), {link(peers_path)} (`make bench-peers`: in turns on the same machine),",
            f"{link(load_path)} and {link(retrieval_path)}.",
        ]
    )


def retrieval_rows() -> tuple[list[Row], Path]:
    """Searches under filters, and the settings of a public recommender beside ours in the same run."""
    path, result = newest("retrieval")
    by_share, peer = result["retrievers"]["faiss"]["by_share"], result["peer"]
    what = f"{result['vectors']:,} vectors, k={result['k']}"

    def figure(share: str) -> str:
        found = by_share[share]
        return f"{found['latency']['p50_ms']:.1f} / {found['latency']['p99_ms']:.1f} ms, recall {found['recall']:.3f}"

    passing = {
        "0.0001": "0.01 %",
        "0.01": "1 %",
        "0.1": "10 %",
        "0.54": "54 %",
        "1.0": "all",
        "region": "a tenth of them in one direction",
    }
    rows = [
        (f"A search, {what}, a filter that lets pass {words}, p50 / p99", "", figure(share))
        for share, words in passing.items()
    ]
    settings = f"LanceDB IVF_PQ {peer['partitions']}/{peer['sub_vectors']}, refine {peer['refine_factor']}"
    ratio = f"ours is {result['peer_over_ours_p50_at_54_percent']:.0f} times as fast"
    theirs = f"{settings}: {peer['latency']['p50_ms']:.0f} ms, recall {peer['recall']:.2f}; {ratio}"
    place = list(passing).index("0.54")
    rows[place] = (rows[place][0], theirs, rows[place][2])
    return rows, path


def load_rows() -> tuple[list[Row], Path]:
    """The graph under load, beside a deployment that does nothing and a hand-written process."""
    path, result = newest("serving_load")
    noop, hand, fused, staged = (result[name] for name in ("noop", "handwritten", "fused", "staged"))

    def latency(of: dict[str, Any]) -> str:
        return f"{of['p50_ms']:.1f} / {of['p95_ms']:.1f} / {of['p99_ms']:.1f} ms"

    one = [("nothing", noop["1"]), ("hand-written", hand["closed"]["1"]), ("staged", staged["closed"]["1"])]
    rows: list[Row] = [
        (
            "The whole graph over HTTP, one client, p50 / p95 / p99",
            ", ".join(f"{name} {latency(of)}" for name, of in one),
            latency(fused["closed"]["1"]),
        ),
        (
            "Throughput, client on the same cores",
            f"hand-written {hand['throughput_per_s']:.0f} a second, staged {staged['throughput_per_s']:.0f}",
            f"{fused['throughput_per_s']:.0f} a second",
        ),
        (
            f"Answers within {result['objective_ms']:.0f} ms at twice the rate that is sustained, of the best",
            f"hand-written {hand['goodput_at_twice_over_peak']:.0%}"
            if hand["goodput_at_twice_over_peak"] is not None
            else "",
            f"{fused['goodput_at_twice_over_peak']:.0%}",
        ),
    ]
    return rows, path


def serving() -> str:
    """The guide's table: retrieval and load in full."""
    (retrieval, retrieval_path), (load, load_path) = retrieval_rows(), load_rows()
    _, result = newest("serving_load")
    _, searched = newest("retrieval")
    stages: list[Row] = [
        (
            f"Of it: {stage}, p50 / p95 / p99",
            "",
            " / ".join(f"{values[f'p{level}_ms']:.2f}" for level in (50, 95, 99)) + " ms",
        )
        for stage, values in result["fused"]["stages_ms"].items()
        if stage != "total"
    ]
    memory = searched["replicas"]
    replicas: Row = (
        "Memory of two processes that search",
        f"one {memory['one_mib']['total']:.0f} MiB",
        f"{memory['two_mib']['total']:.0f} MiB",
    )
    rows = [*load[:1], *stages, *load[1:], *retrieval, replicas]
    return "\n".join(
        [
            *lines_of(rows, "2 CPU cores"),
            "",
            f"From {link(load_path, '../')} and {link(retrieval_path, '../')}.",
        ]
    )


def demo() -> str:
    """What the demo's steps take and reach."""
    path, result = newest("main_job")
    steps_s, offline = result["step_seconds"], result["offline"]
    worst = max(
        layer[name] for layer in result["parity"].values() for name in layer if name.startswith("max_")
    )
    rows: list[Row] = [
        ("`prepare`: 1,000,209 ratings to a dataset", "", f"{steps_s['prepare']:.1f} s"),
        (
            f"`train`: {result['training']['epochs']} epochs of a small BERT4Rec on local Ray",
            "",
            f"{steps_s['train']:.0f} s",
        ),
        (
            "Test NDCG@10, that model",
            f"popularity {offline['popularity']['ndcg@10']:.4f}",
            f"{offline['model']['ndcg@10']:.4f}",
        ),
        ("Test NDCG@10, with the ranker", "", f"{offline['ranker']['ndcg@10']:.4f}"),
        ("Largest difference of a score: ONNX Runtime, Triton, HTTP", "torch and LightGBM", f"{worst:.0e}"),
        ("`serve`: ready after", "", f"{result['ready_seconds']:.1f} s"),
    ]
    return "\n".join(
        [
            *lines_of(rows, "The demo, MovieLens-1M"),
            "",
            f"From {link(path)} (`.venv/bin/python -m benchmarks.main_job`).",
        ]
    )


def towers() -> str:
    """How good two towers are, also for films that training never saw, and what large catalogues cost."""
    (quality_path, quality), (cold_path, cold), (scaling_path, scaling), (adding_path, adding) = (
        newest(theme) for theme in ("quality", "cold_items", "catalogue_scaling", "add_items")
    )
    case = quality["cases"]["two_tower"]
    simple = {name: values["recall@100"] for name, values in quality["baselines"][case["data"]].items()}
    best = max(simple, key=lambda name: simple[name])
    recall = case["train"]["mean"]["recall@100"]
    found = {name: values["recall@100"] for name, values in cold["mean"].items()}
    step_ms = {
        (row["table"], row["num_items"]): row["step_ms"] for row in scaling["rows"] if "step_ms" in row
    }
    smallest, largest = (edge(items for table, items in step_ms if table == "sparse") for edge in (min, max))
    alone, sparse = (quality["cases"][f"two_tower_{name}"]["train"] for name in ("history", "sparse"))
    rows: list[Row] = [
        (
            f"Test Recall@100, MovieLens-1M, {len(case['train']['runs'])} seeds",
            f"best baseline ({best}) {simple[best]:.3f}, popularity {simple['popularity']:.3f}, "
            f"queries of the history alone {alone['mean']['recall@100']:.3f} ({len(alone['runs'])} seeds)",
            f"{recall:.3f}",
        ),
        (
            "Test NDCG@10 of the same",
            f"queries of the history alone {alone['mean']['ndcg@10']:.4f}, "
            f"a sparse table {sparse['mean']['ndcg@10']:.4f} ({len(sparse['runs'])} seed{'s' if len(sparse['runs']) > 1 else ''})",
            f"{case['train']['mean']['ndcg@10']:.4f}",
        ),
        (
            f"Recall@100 of {cold['runs'][0]['cold_items']} films without any event, among all, {len(cold['runs'])} seeds",
            f"popularity of the genres {found['genre_popularity']:.3f}, of those liked {found['liked_genre_popularity']:.3f}, "
            f"nearest features {found['content_neighbours']:.3f}",
            f"{found['two_tower']:.3f}",
        ),
        (
            f"A step with {largest:,} items, sparse table",
            f"with {smallest:,} {step_ms['sparse', smallest]:.0f} ms, dense table {step_ms['dense', largest]:.0f} ms",
            f"{step_ms['sparse', largest]:.0f} ms",
        ),
        (f"`add-items`, {adding['new']:,} on {adding['items']:,}", "", f"{adding['add_items_s']:.0f} s"),
    ]
    files = ", ".join(link(path, "../") for path in (quality_path, cold_path, scaling_path))
    return "\n".join([*lines_of(rows, "2 CPU cores"), "", f"From {files} and {link(adding_path, '../')}."])


def ablation() -> str:
    """What each choice of a recipe is worth after a short schedule, best first, and what seeds alone do."""
    path, result = newest("recipe_ablation")
    lines = []
    for recipe, variants in result["recipes"].items():
        reached = {name: variant["validation_ndcg@10"] for name, variant in variants.items()}
        lines += [f"| `{recipe}` | Settings | NDCG@10 | Beside the recipe |", "|---|---|---:|---:|"]
        for name in sorted(reached, key=lambda name: -reached[name]):
            settings = " ".join(f"`{setting}`" for setting in variants[name]["overrides"])
            lines.append(
                f"| {name} | {settings} | {reached[name]:.4f} | {reached[name] / reached['recipe'] - 1:+.1%} |"
            )
        lines.append("")
    common = ", ".join(f"`{setting}`" for setting in result["common"])
    return "\n".join(
        [*lines, f"Validation, MovieLens-1M (5-core), all with {common}. From {link(path, '../')}."]
    )


TABLES = {
    "README.md": {"results": results, "demo": demo},
    "docs/training.md": {"towers": towers},
    "docs/serving.md": {"serving": serving},
    "docs/decisions.md": {"ablation": ablation},
}


def main() -> None:
    """Rewrite what stands between the markers of each document; with `--check`, fail where that would change one."""
    for document, tables in TABLES.items():
        current = (ROOT / document).read_text(encoding="utf-8")
        for name, table in tables.items():
            before, begin, rest = current.partition(f"<!-- {name}:begin -->\n")
            _, end, after = rest.partition(f"<!-- {name}:end -->")
            assert begin and end, f"{document} has no place for {name}"
            current = f"{before}{begin}{table()}\n{end}{after}"
        write_or_check(ROOT / document, current)


if __name__ == "__main__":
    main()
