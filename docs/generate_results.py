"""Write docs/results.md and the README's table from the newest result files, or check that they are current.

python docs/generate_results.py          # or: make docs
python docs/generate_results.py --check  # exit status 1 when a document is not what would be written
"""

from collections.abc import Iterator
from typing import Any

from pages import write_or_check
from result_rows import (
    ML_1M,
    ROOT,
    SERVICES,
    curve_rows,
    latency_rows,
    link,
    load_rows,
    mean_and_deviation,
    newest,
    peers_rows,
    quality_rows,
    reaching_rows,
    search_rows,
    stage_rows,
    table,
)
from result_texts import (
    ABLATION,
    CURVE,
    DEMO,
    INTRODUCTION,
    LOAD,
    MEMORY,
    PEERS,
    PROVENANCE,
    QUALITY,
    REACHING,
    SEARCHES,
    SERVING,
    STAGES,
    TOWERS,
)


def first_screen() -> str:
    """The README's table: six rows, with a link to the rest."""
    quality = {row[0]: row for row in quality_rows(newest("quality")[1])}
    epoch = peers_rows(newest("peers")[1])[0]
    load = newest("serving_load")[1]
    searched = newest("retrieval")[1]
    latency = {row[0]: row[1] for row in latency_rows(load)}
    goodput = {row[0]: row[3] for row in load_rows(load)}
    # Where the hand-written service is at its best.
    peak = max(
        (row for row in curve_rows(load) if row[1] and row[3]), key=lambda row: float(row[1].split()[0])
    )
    search = {row[1].split()[0].rstrip(","): row for row in search_rows(searched) if row[0] == "54 %"}
    graph = f"BERT4Rec (2 blocks, history 100) and ranker, {load['items']:,} items"
    rows = [
        *(
            [
                "Test NDCG@10",
                f"{quality[name][0]}, {quality[name][1]}",
                f"published {quality[name][2]}",
                quality[name][6],
            ]
            for name in ("BERT4Rec", "SASRec with time")
        ),
        ["Time of an epoch", f"BERT4Rec, {ML_1M}", f"RecTools {epoch[2]}", epoch[3]],
        [
            "Search, filter selectivity 54 %, p50",
            f"FAISS, {searched['vectors']:,} items",
            f"LanceDB {search['LanceDB'][2]}, recall {search['LanceDB'][4]}",
            f"{search['FAISS'][2]}, recall {search['FAISS'][4]}",
        ],
        [
            "Latency over HTTP, p50",
            graph,
            f"hand-written {latency['Hand-written service']}",
            latency["Passerelle"],
        ],
        [
            f"Goodput at {peak[0]}; at twice the sustainable rate",
            "the same",
            f"hand-written {peak[1]}; {goodput['Hand-written service']}",
            f"{peak[3]}; {goodput['Passerelle']}",
        ],
    ]
    header = (f"{load['environment']['cores']} CPU cores", "Model, data, catalogue", "Baseline", "Passerelle")
    note = "MovieLens' times are partly reconstructed here; where that matters, docs/results.md says so.\n"
    note += "More rows, and the file that each figure is from: [docs/results.md](docs/results.md)."
    return "\n".join([*table(header, rows), "", note])


def source(*paths: Any) -> list[str]:
    """Where the figures above are from, a file a line."""
    return ["", "From " + ",\n".join(link(path, "../") for path in paths) + "."]


def quality_section() -> Iterator[str]:
    """Quality, and the time until it is reached."""
    path, result = newest("quality")
    yield QUALITY.format(provenance=PROVENANCE)
    header = ("Model", "Data", "Published", "Best baseline", "Popularity", "Seeds", "Passerelle")
    yield from table(header, quality_rows(result), figures=2)
    yield REACHING
    yield from table(("Model", "Data", "Threads", "Time"), reaching_rows(result))
    yield from source(path)


def peers_section() -> Iterator[str]:
    """Epoch times beside RecTools."""
    path, result = newest("peers")
    yield PEERS.format(version=result["peer"]["rectools"])
    yield from table(("Loss", "Data", "RecTools", "Passerelle", "Ratio"), peers_rows(result), figures=3)
    yield from source(path)


def towers_section() -> Iterator[str]:
    """Two towers, also for items that training never saw, and what large catalogues cost."""
    paths, (quality, cold, scaling, adding) = zip(
        *(newest(theme) for theme in ("quality", "cold_items", "catalogue_scaling", "add_items")), strict=True
    )
    case = quality["cases"]["two_tower"]
    simple = {name: values["recall@100"] for name, values in quality["baselines"][case["data"]].items()}
    best = max(simple, key=lambda name: simple[name])
    found = {name: values["recall@100"] for name, values in cold["mean"].items()}
    step_ms = {
        (row["table"], row["num_items"]): row["step_ms"] for row in scaling["rows"] if "step_ms" in row
    }
    smallest, largest = (edge(items for table, items in step_ms if table == "sparse") for edge in (min, max))
    alone, sparse = (quality["cases"][f"two_tower_{name}"]["train"] for name in ("history", "sparse"))
    recall, ndcg = (case["train"]["mean"][metric] for metric in ("recall@100", "ndcg@10"))
    cold_start = (
        f"Recall@100 of {cold['runs'][0]['cold_items']} films without any event, {len(cold['runs'])} seeds"
    )
    rows = [
        [f"Test Recall@100, {ML_1M}", f"{best} {simple[best]:.3f}", f"{recall:.3f}"],
        ["", f"popularity {simple['popularity']:.3f}", ""],
        ["", f"queries of the history alone {alone['mean']['recall@100']:.3f}", ""],
        [
            "Test NDCG@10 of the same",
            f"queries of the history alone {alone['mean']['ndcg@10']:.4f}",
            f"{ndcg:.4f}",
        ],
        ["", f"a sparse table {mean_and_deviation(sparse)} ({len(sparse['runs'])} seed)", ""],
        [
            cold_start,
            f"popularity of the genres {found['genre_popularity']:.3f}",
            f"{found['two_tower']:.3f}",
        ],
        ["", f"popularity of genres the user likes {found['liked_genre_popularity']:.3f}", ""],
        ["", f"nearest features {found['content_neighbours']:.3f}", ""],
        [
            f"Training step with {largest:,} items, sparse table",
            f"{smallest:,} items {step_ms['sparse', smallest]:.0f} ms",
            f"{step_ms['sparse', largest]:.0f} ms",
        ],
        ["", f"{largest:,} items, dense table {step_ms['dense', largest]:.0f} ms", ""],
        [
            f"`add-items`: {adding['new']:,} items to {adding['items']:,}",
            "",
            f"{adding['add_items_s']:.0f} s",
        ],
    ]
    yield TOWERS
    yield from table(("Measure", "Baseline", "Passerelle"), rows)
    yield from source(*paths)


def serving_section() -> Iterator[str]:
    """The graph under load, and filtered retrieval."""
    path, result = newest("serving_load")
    levels = ("p50", "p95", "p99")
    yield SERVING.format(items=result["items"])
    yield from table(("Service", *levels), latency_rows(result), figures=3)
    yield STAGES
    yield from table(("Stage", *levels), stage_rows(result), figures=3)
    yield LOAD.format(objective=result["objective_ms"])
    header = ("Service", "Throughput", "Sustainable rate", "Goodput at twice the sustainable rate")
    yield from table(header, load_rows(result), figures=3)
    yield CURVE
    services = [name for name, key in SERVICES.items() if key != "noop"]
    yield from table(("Arrivals", *services), curve_rows(result), figures=3)
    yield from source(path)

    path, result = newest("retrieval")
    ratio = result["peer_over_ours_p50_at_54_percent"]
    yield SEARCHES.format(vectors=result["vectors"], k=result["k"], ratio=ratio)
    yield from table(("Filter selectivity", "Index", "p50", "p99", "Recall"), search_rows(result), figures=3)
    memory = result["replicas"]
    yield MEMORY.format(one=memory["one_mib"]["total"], two=memory["two_mib"]["total"]).rstrip("\n")
    yield from source(path)


def demo_section() -> Iterator[str]:
    """What the demo's steps take and reach."""
    path, result = newest("main_job")
    steps_s, offline = result["step_seconds"], result["offline"]
    worst = max(
        layer[name] for layer in result["parity"].values() for name in layer if name.startswith("max_")
    )
    epochs = result["training"]["epochs"]
    rows = [
        ["`prepare`", "", f"{steps_s['prepare']:.1f} s"],
        [f"`train`, {epochs} epochs on local Ray", "", f"{steps_s['train']:.0f} s"],
        [
            "Test NDCG@10 of the model",
            f"popularity {offline['popularity']['ndcg@10']:.4f}",
            f"{offline['model']['ndcg@10']:.4f}",
        ],
        ["Test NDCG@10 with the ranker", "", f"{offline['ranker']['ndcg@10']:.4f}"],
        ["Largest difference of a score: ONNX Runtime, Triton, HTTP", "torch and LightGBM", f"{worst:.0e}"],
        ["`serve`, until ready", "", f"{result['ready_seconds']:.1f} s"],
    ]
    yield DEMO
    yield from table(("Step or measure", "Baseline", "Passerelle"), rows)
    yield from source(path)


def ablation_section() -> Iterator[str]:
    """What each choice of a recipe changes after a short schedule, best first."""
    path, result = newest("recipe_ablation")
    yield ABLATION.format(common=", ".join(f"`{setting}`" for setting in result["common"]))
    for recipe, variants in result["recipes"].items():
        reached = {name: variant["validation_ndcg@10"] for name, variant in variants.items()}
        rows = [
            [
                name,
                f"`{' '.join(map(_short, variants[name]['overrides']))}`"
                if variants[name]["overrides"]
                else "",
                f"{reached[name]:.4f}",
                f"{reached[name] / reached['recipe'] - 1:+.1%}",
            ]
            for name in sorted(reached, key=lambda name: -reached[name])
        ]
        yield from table((f"`{recipe}`", "Settings", "NDCG@10", "Change"), rows, figures=2)
        yield ""
    yield f"From {link(path, '../')}."


def _short(setting: str) -> str:
    """A setting without its section."""
    return setting.partition(".")[2].removeprefix("kind=")


def page() -> str:
    """The whole of docs/results.md."""
    sections = (
        quality_section,
        peers_section,
        towers_section,
        serving_section,
        demo_section,
        ablation_section,
    )
    cores = newest("serving_load")[1]["environment"]["cores"]
    lines = [
        INTRODUCTION.format(cores=cores).rstrip("\n"),
        *(line for section in sections for line in section()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both documents; with `--check`, fail where one would change."""
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition("<!-- results:begin -->\n")
    _, end, after = rest.partition("<!-- results:end -->")
    assert begin and end, "README.md has no markers for its results"
    write_or_check(readme, f"{before}{begin}{first_screen()}\n{end}{after}")
    write_or_check(ROOT / "docs" / "results.md", page())


if __name__ == "__main__":
    main()
