"""`passerelle train RECIPE --dataset DATASET --out RUN`."""

from pathlib import Path

import click

from ray_cluster.cli.console import NamingCommand, json_option, progress_bars, set_option
from ray_cluster.cli.training_output import print_epoch, print_run


def _recipe_names() -> list[str]:
    from training.config import recipe_names

    return recipe_names()


@click.command(cls=NamingCommand, names=_recipe_names)
@click.argument("recipe", required=False)
@click.option("--dataset", type=click.Path(path_type=Path), help="Dataset made by `passerelle prepare`.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Run directory to create (or, with --resume, to continue).",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Data-parallel Ray Train workers.",
)
@click.option("--no-ray", is_flag=True, help="Train in this process, without Ray.")
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="A running Ray cluster (`auto`, `ray://HOST:10001`); without it, Ray starts here.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run from its last checkpoint; give the same recipe, dataset and --set.",
)
@click.option(
    "--refit",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Train RUN's recipe again, on train and validation.",
)
@set_option
@json_option
def command(
    recipe: str | None,
    dataset: Path | None,
    out: Path,
    workers: int,
    no_ray: bool,
    ray_address: str | None,
    resume: bool,
    refit: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a recipe on a prepared dataset.

    RECIPE is {names}, or the path of a TOML file.
    Training stops after `training.max_epochs`, or when validation NDCG@10 has not grown for
    `training.patience` validations; the best weights are kept.
    Watch it with `tensorboard --logdir RUN/tensorboard`.
    Every setting is in docs/configuration.md, and docs/training.md says how to use them.

    With --refit RUN instead of RECIPE, the recipe of RUN is trained again on train and validation events
    together, for the number of epochs that RUN's validation chose: the model to serve in the end.
    Its test metrics are marked as those of a refit.

    \b
    Examples:
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run
      passerelle train sasrec --dataset artifacts/dataset --out artifacts/run --workers 2
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run --set loss.kind=sampled
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run --resume
      passerelle train --refit artifacts/run --out artifacts/refit
    """
    if no_ray and (workers > 1 or ray_address):
        raise click.UsageError("--no-ray trains in this process: leave out --workers and --ray-address")
    from passerelle.dataset import open_dataset
    from ray_cluster.watch import watch_run
    from training.config import load_recipe
    from training.runs.run import open_run, open_run_dataset, refit_config

    if refit:
        if recipe or overrides:
            raise click.UsageError(
                "--refit takes recipe and settings from its run: leave out RECIPE and --set"
            )
        chosen = open_run(refit)
        name, config, opened = chosen.recipe, refit_config(chosen), open_run_dataset(chosen, dataset)
    else:
        if not recipe or not dataset:
            raise click.UsageError("say what to train and on what: RECIPE and --dataset, or --refit RUN")
        name, config, opened = Path(recipe).stem, load_recipe(recipe, overrides), open_dataset(dataset)

    with progress_bars() as progress, watch_run(out, progress, print_epoch):
        if no_ray:
            from training.runs.fit import train_in_process

            manifest = train_in_process(name, opened, config, out, resume=resume, refit_of=refit)
        else:
            from ray_cluster.training import RayOptions, train_on_ray

            manifest = train_on_ray(
                name,
                opened,
                config,
                out,
                RayOptions(num_workers=workers, address=ray_address),
                resume=resume,
                refit_of=refit,
            )
    print_run(out, manifest, as_json=as_json)
