"""Write the tables of results in README.md, training.md and decisions.md anew from the newest result files, or check that they are current.

.venv/bin/python docs/generate_results.py [--check]
"""

from pages import write_or_check
from result_rows import (
    ROOT,
    Row,
    lines_of,
    link,
    load_rows,
    newest,
    peers_rows,
    quality_rows,
    retrieval_rows,
)


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
