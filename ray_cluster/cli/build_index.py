"""`passerelle build-index`: the index of a bundle's vectors, with its recall measured."""

from pathlib import Path
from typing import cast

import click

from ray_cluster.cli.console import json_option, print_json, stderr


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--retriever",
    type=click.Choice(["exact", "faiss", "lancedb"]),
    default="faiss",
    show_default=True,
    help="What searches the vectors.",
)
@click.option(
    "--target-recall",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Recall@100 that it must reach.",
)
@click.option("--overwrite", is_flag=True, help="Replace the index if there is one.")
@json_option
def command(bundle: Path, retriever: str, target_recall: float, overwrite: bool, as_json: bool) -> None:
    """Build the index of BUNDLE and measure its recall against a full scan, under filters of several kinds.

    The index looks further until the target is reached; if it cannot be, nothing is written.
    Replicas map it, so that a second one needs no second copy.
    `publish` builds one with these defaults where a catalogue of more than 30,000 items has none.
    Items that are added later are searched exactly.

    \b
    Examples:
      passerelle build-index artifacts/bundle
      passerelle build-index artifacts/bundle --retriever lancedb --target-recall 0.95
      passerelle build-index artifacts/bundle --overwrite --json
    """
    from passerelle.bundle import open_bundle
    from serving.retrievers.index_store import Kind, build_index

    manifest = build_index(
        open_bundle(bundle, verify=False),
        cast(Kind, retriever),
        target_recall=target_recall,
        overwrite=overwrite,
        report=lambda line: stderr.print(line),
    )
    if as_json:
        print_json(
            {
                "index": str(bundle / "index"),
                **manifest.model_dump(
                    include={"retriever", "num_vectors", "parameters", "recall", "build_s"}
                ),
            }
        )
        return
    worst = min(manifest.recall.values())
    click.echo(
        f"{bundle / 'index'}: {retriever} over {manifest.num_vectors:,} vectors, recall@100 at least "
        f"{worst:.4f}, {manifest.build_s:.1f} s"
    )
