"""`passerelle export RUN --out BUNDLE`."""

from pathlib import Path

import click

from ray_cluster.cli.console import json_option, print_json, progress_bars


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle directory to create.")
@click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    help="Where the dataset is now, if it has moved since training.",
)
@click.option("--overwrite", is_flag=True, help="Replace the bundle if it exists.")
@json_option
def command(run: Path, out: Path, dataset: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write a bundle: ONNX networks, item vectors, tables, and the answers that
    every later layer must reproduce.

    RUN needs a ranker: `passerelle train-ranker` makes it.
    Fails when ONNX Runtime differs from torch and LightGBM by more than 1e-4, or in any user's ten best.

    \b
    Examples:
      passerelle export artifacts/run --out artifacts/bundle
      passerelle export artifacts/run --out artifacts/bundle --overwrite --json
    """
    from training.export.bundle import export
    from training.runs.open_run import load_run

    opened = load_run(run, dataset)
    with progress_bars() as progress:
        bundle = export(opened, out, overwrite=overwrite, progress=progress)
    parity = bundle.manifest.parity["onnxruntime"]
    if as_json:
        print_json({"bundle": str(out), "bundle_id": bundle.manifest.bundle_id, "parity": parity})
    else:
        worst = max(value for name, value in parity.items() if name.startswith("max_"))
        size_mb = sum(entry.size_bytes for entry in bundle.manifest.files.values()) / 1e6
        click.echo(
            f"{out}: bundle {bundle.manifest.bundle_id}, {size_mb:.1f} MB; scores agree to {worst:.1e} for "
            f"{parity['users']} users"
        )
