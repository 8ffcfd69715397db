"""`passerelle train-ranker RUN`."""

from pathlib import Path

import click

from ray_cluster.cli.console import json_option, print_json, print_table, progress_bars


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    help="Where the dataset is now, if it has moved since training.",
)
@click.option("--overwrite", is_flag=True, help="Train again where the run already has a ranker.")
@json_option
def command(run: Path, dataset: Path | None, overwrite: bool, as_json: bool) -> None:
    """Train the LightGBM ranker that orders what retrieval finds, and measure it on the test targets.

    It learns from the validation targets with the features of `passerelle/features.py`; the settings are the
    `[ranker]` section of the run's recipe.

    \b
    Examples:
      passerelle train-ranker artifacts/run
      passerelle train-ranker artifacts/run --overwrite --json
    """
    from training.ranker import train_ranker
    from training.runs.open_run import load_run

    opened = load_run(run, dataset)
    with progress_bars() as progress:
        results = train_ranker(opened, progress, overwrite=overwrite)
    if as_json:
        print_json({"run": str(run), "trained_on": opened.manifest.trained_on, **results})
    else:
        candidates = opened.manifest.config.ranker.num_candidates
        rows = [(metric, *(values[metric] for values in results.values())) for metric in results["model"]]
        title = (
            f"Test, {candidates} candidates a user: retrieval order and ranker order; "
            f"trained on {opened.manifest.trained_on}"
        )
        print_table(title, ("metric", *results), rows)
