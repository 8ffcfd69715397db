"""`passerelle evaluate RUN`."""

from pathlib import Path
from typing import Any, Literal

import click

from ray_cluster.cli.console import json_option, print_json, progress_bars
from ray_cluster.cli.evaluation_tables import print_evaluation

BASELINES = "popularity,recent_popularity,markov,item_knn,ease,ials"


def _numbers(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(number) for number in text.split(",")}))
    except ValueError:
        message = f"{text!r}: write whole numbers with commas between, such as 10,50"
        raise click.BadParameter(message) from None


def _segments(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...] | Literal["terciles"] | None:
    return "terciles" if text == "terciles" else _numbers(context, parameter, text)


def _names(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Part to rank.",
)
@click.option(
    "--k",
    "ks",
    callback=_numbers,
    help="Cut-offs, with commas between; without it 10,20,50,100, as far as there are items.",
)
@click.option(
    "--baselines",
    callback=_names,
    default="popularity",
    show_default=True,
    metavar="NAMES",
    help=f"What to compare with: all, or some of {BASELINES}, with commas between.",
)
@click.option(
    "--fit-baselines-on",
    type=click.Choice(["train", "before_targets"]),
    default="train",
    show_default=True,
    help="What baselines learn from: what the model did, or all events before the part (for test: validation "
    "events too).",
)
@click.option(
    "--recent-days",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="How far the baseline recent_popularity looks back.",
)
@click.option("--with-seen", is_flag=True, help="Measure a second time with seen items left in the ranking.")
@click.option(
    "--segments",
    callback=_segments,
    metavar="EDGES",
    help="Measure users by length of history too: terciles, or where groups begin: 20,100 is below 20, 20 to "
    "99, and from 100.",
)
@click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    help="Where the dataset is now, if it has moved since training.",
)
@json_option
def command(
    run: Path, split: Literal["test", "validation"], dataset: Path | None, as_json: bool, **settings: Any
) -> None:
    """Rank the whole catalogue for every user of a part, seen items left out, beside baselines.

    Every metric of the model comes with its 95 % interval, from 1000 bootstrap resamples of the users, and
    the model's advantage over each baseline with that of the paired difference.
    The run keeps all of it: plain numbers in evaluation.json, the rest in evaluation_details.json.

    \b
    Examples:
      passerelle evaluate artifacts/run
      passerelle evaluate artifacts/run --split validation --k 10
      passerelle evaluate artifacts/run --baselines all --segments terciles --with-seen
      passerelle evaluate artifacts/run --baselines popularity,recent_popularity --recent-days 7
      passerelle evaluate artifacts/run --json
    """
    from training.evaluation.evaluate import EvaluationSettings, evaluate_in_detail
    from training.runs.open_run import load_run

    opened = load_run(run, dataset)
    with progress_bars() as progress:
        evaluation = evaluate_in_detail(opened, split, EvaluationSettings(**settings), progress)
    if as_json:
        report = {"run": str(run), "split": split, "users": len(opened.users(split))}
        print_json({**report, **evaluation.metrics, "details": evaluation.details})
    else:
        manifest = opened.manifest
        title = (
            f"{manifest.recipe} on {opened.dataset.manifest.name}, {split}, "
            f"full catalogue of {opened.dataset.num_items} items; trained on {manifest.trained_on}"
        )
        print_evaluation(title, evaluation)
