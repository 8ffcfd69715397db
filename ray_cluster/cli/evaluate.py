"""`passerelle evaluate RUN`."""

from pathlib import Path

import click

from ray_cluster.cli.console import json_option, print_json, print_table, progress_bars


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{text!r}: write whole numbers with commas between, such as 10,50") from None


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["test", "validation"]), default="test", show_default=True, help="Part to rank.")
@click.option("--k", "ks", callback=_numbers, help="Cut-offs, with commas between; without it 10,20,50,100, as far as there are items.")
@click.option("--dataset", type=click.Path(path_type=Path), help="Where the dataset is now, if it has moved since training.")
@json_option
def command(run: Path, split: str, ks: tuple[int, ...] | None, dataset: Path | None, as_json: bool) -> None:
    """Rank the whole catalogue for every user of a part, seen items left out, beside the popularity baseline.

    \b
    Examples:
      passerelle evaluate artifacts/run
      passerelle evaluate artifacts/run --split validation --k 10
      passerelle evaluate artifacts/run --json
    """
    from training.evaluation import evaluate, load_run

    opened = load_run(run, dataset)
    with progress_bars() as progress:
        results = evaluate(opened, "test" if split == "test" else "validation", ks, progress)
    if as_json:
        print_json({"run": str(run), "split": split, "users": len(opened.users("test" if split == "test" else "validation")), **results})
    else:
        metrics = list(results["model"])
        title = f"{opened.manifest.recipe} on {opened.dataset.manifest.name}, {split}, full catalogue of {opened.dataset.num_items} items"
        print_table(title, ("metric", *results), [(metric, *(values[metric] for values in results.values())) for metric in metrics])
