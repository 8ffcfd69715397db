"""Result files, and the rows of the tables made from them."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

ML_1M = "MovieLens-1M, 3,416 items"
CASES = {
    "bert4rec": ("BERT4Rec", ML_1M, "train"),
    "two_tower": ("two towers", ML_1M, "train"),
    "sasrec": ("SASRec", ML_1M, "train"),
    "sasrec_uniform": ("SASRec, 256 uniform negatives", ML_1M, "train"),
    "sasrec_mixed": ("SASRec, 256 mixed negatives", ML_1M, "train"),
    "sasrec_time": ("SASRec with time", "MovieLens-1M, 3,706 items", "train"),
    "sasrec_beauty": ("SASRec, refit", "Amazon Beauty, 12,101 items", "refit"),
}
"""Case of the quality benchmark -> model, data with the size of the catalogue, and which run is reported."""
PEERS = {
    "ml-1m-full": ("full softmax, length 200", ML_1M),
    "ml-1m-sampled": ("256 sampled negatives, length 200", ML_1M),
    "beauty-full": ("full softmax, length 50", "Amazon Beauty, 12,101 items"),
}
SELECTIVITIES = {
    "0.0001": "0.01 %",
    "0.01": "1 %",
    "0.1": "10 %",
    "0.54": "54 %",
    "1.0": "no filter",
    "region": "10 %, correlated with the vectors",
}
"""Key of the retrieval benchmark -> filter selectivity: the share of the catalogue that a filter keeps."""


def newest(theme: str) -> tuple[Path, dict[str, Any]]:
    """Path and contents of the newest result file of a benchmark on a CPU."""
    path = sorted(
        (ROOT / "benchmarks" / "results").glob(f"{theme}_cpu*.json"),
        key=lambda path: path.stem.rpartition("_")[2],
    )[-1]
    return path, json.loads(path.read_text(encoding="utf-8"))


def link(path: Path, to_root: str = "") -> str:
    """A Markdown link to a file of the repository."""
    return f"[{path.name}]({to_root}{path.relative_to(ROOT)})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, figures: int = 1) -> list[str]:
    """Lines of a Markdown table whose last columns are figures, aligned to the right."""
    ruler = "|" + "---|" * (len(header) - figures) + "---:|" * figures
    return [f"| {' | '.join(header)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def mean_and_deviation(of: dict[str, Any], metric: str = "ndcg@10") -> str:
    """Mean over seeds, with the standard deviation where there are several."""
    mean, deviation = (of.get(statistic, {}).get(metric) for statistic in ("mean", "standard_deviation"))
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"


def quality_rows(result: dict[str, Any]) -> list[list[str]]:
    """Model, data, published NDCG@10, best baseline, popularity, seeds, and ours."""
    rows = []
    for name, (model, data, kind) in CASES.items():
        case = result["cases"].get(name, {})
        if kind not in case:
            continue
        baselines = {label: values["ndcg@10"] for label, values in result["baselines"][case["data"]].items()}
        best = max(baselines, key=lambda label: baselines[label])
        published = case["published_ndcg@10"]
        rows.append(
            [
                model,
                data,
                "" if published is None else f"{published:.4f}",
                f"{best} {baselines[best]:.4f}",
                f"{baselines['popularity']:.4f}",
                str(len(case[kind]["runs"])),
                mean_and_deviation(case[kind]),
            ]
        )
    return rows


def reaching_rows(result: dict[str, Any]) -> list[list[str]]:
    """Model, data, threads, and the median time until validation reaches what RecTools publishes."""
    rows = []
    for name in ("bert4rec", "sasrec"):
        runs = result["cases"].get(name, {}).get("train", {}).get("runs", [])
        reached_s = [run["seconds_until_rectools_ndcg"] for run in runs if run["seconds_until_rectools_ndcg"]]
        if reached_s:
            (threads,) = {run["threads"] for run in runs}
            minutes = statistics.median(reached_s) / 60
            rows.append([*CASES[name][:2], str(threads), f"{minutes:.0f} min"])
    return rows


def peers_rows(result: dict[str, Any]) -> list[list[str]]:
    """Loss and length, data, epochs of RecTools and of ours, and the smallest and largest ratio of a pair."""
    rows = []
    for name, (what, data) in PEERS.items():
        case = result["cases"][name]
        theirs_s, ours_s = (statistics.median(case[side]) for side in ("rectools_epoch_s", "ours_epoch_s"))
        ratios = f"{min(case['ratios']):.0f} to {max(case['ratios']):.0f}"
        rows.append([what, data, f"{theirs_s:.0f} s", f"{ours_s:.1f} s", ratios])
    return rows


def search_rows(result: dict[str, Any]) -> list[list[str]]:
    """Filter selectivity, index, p50, p99 and recall: the default retriever, and the peer where measured."""
    rows = []
    for share, words in SELECTIVITIES.items():
        found = result["retrievers"]["faiss"]["by_share"][share]
        rows.append([words, "FAISS, inverted file", *_search(found)])
        if share == "0.54":
            peer = result["peer"]
            settings = f"{peer['partitions']}/{peer['sub_vectors']}, refine {peer['refine_factor']}"
            rows.append([words, f"LanceDB IVF_PQ {settings}", *_search(peer)])
    return rows


def _search(found: dict[str, Any]) -> list[str]:
    latency = found["latency"]
    return [f"{latency['p50_ms']:.1f} ms", f"{latency['p99_ms']:.1f} ms", f"{found['recall']:.3f}"]


SERVICES = {
    "No-op deployment": "noop",
    "Hand-written service": "handwritten",
    "Passerelle, one process per stage": "staged",
    "Passerelle": "fused",
}
"""Name in the tables -> key of the serving benchmark."""


def latency_rows(result: dict[str, Any]) -> list[list[str]]:
    """What answers, and p50, p95 and p99 of one client."""
    rows = []
    for name, key in SERVICES.items():
        one_client = result[key].get("closed", result[key])["1"]
        rows.append([name, *(f"{one_client[f'p{level}_ms']:.1f} ms" for level in (50, 95, 99))])
    return rows


def stage_rows(result: dict[str, Any]) -> list[list[str]]:
    """Stage, and p50, p95 and p99 of it."""
    return [
        [stage, *(f"{values[f'p{level}_ms']:.2f} ms" for level in (50, 95, 99))]
        for stage, values in result["fused"]["stages_ms"].items()
        if stage != "total"
    ]


def load_rows(result: dict[str, Any]) -> list[list[str]]:
    """What answers, its throughput, its sustainable rate, and its goodput at twice that rate."""
    rows = []
    for name, key in list(SERVICES.items())[1:]:
        of = result[key]
        goodput = of["goodput_at_twice_over_peak"]
        sustainable = f"{of['sustainable_per_s']:.0f} / s" if of["sustainable_per_s"] else "none"
        figures = [f"{of['throughput_per_s']:.0f} / s", sustainable]
        rows.append([name, *figures, "" if goodput is None else f"{100 * goodput:.0f} %"])
    return rows


def curve_rows(result: dict[str, Any]) -> list[list[str]]:
    """Arrivals per second, and the goodput of each service where it was tried at that rate."""
    services = [key for name, key in SERVICES.items() if key != "noop"]
    tried = {
        key: {round(one["rate_per_s"]): one["goodput_per_s"] for one in result[key]["open"]}
        for key in services
    }
    rows: list[list[str]] = []
    for rate in sorted({rate for rates in tried.values() for rate in rates}):
        near = [
            next((goodput for other, goodput in tried[key].items() if abs(other - rate) <= rate / 100), None)
            for key in services
        ]
        figures = ["" if goodput is None else f"{goodput:.0f} / s" for goodput in near]
        if not rows or rows[-1][1:] != figures:
            rows.append([f"{rate} / s", *figures])
    return rows
