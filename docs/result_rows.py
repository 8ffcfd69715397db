"""The rows of the result tables, from the newest result file of each benchmark."""

import json
import statistics
from pathlib import Path
from typing import Any

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
