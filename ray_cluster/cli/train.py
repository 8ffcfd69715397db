"""`passerelle train RECIPE --dataset DATASET --out RUN`."""

from pathlib import Path
from typing import Any

import click

from ray_cluster.cli.console import json_option, print_json, progress_bars, set_option, stderr


@click.command()
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
    """Train RECIPE (bert4rec, sasrec, or a TOML file) on a prepared dataset.

    Training stops after `training.max_epochs`, or when validation NDCG@10 has not grown for `training.patience` validations;
    the best weights are kept. Watch it with `tensorboard --logdir RUN/tensorboard`. Every setting is in docs/configuration.md, and
    docs/training.md says how to use them.

    With --refit RUN instead of RECIPE, what RUN was trained with is trained anew on train and validation events together, for the
    epochs that RUN's validation chose: the model to serve, once the choices are made. Its test figures are said to be a refit's.

    \b
    Examples:
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run
      passerelle train sasrec --dataset artifacts/dataset --out artifacts/run --set loss.kind=sampled --workers 2
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run --no-ray --set training.max_epochs=5
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run --resume
      passerelle train --refit artifacts/run --out artifacts/refit
    """
    if no_ray and (workers > 1 or ray_address):
        raise click.UsageError("--no-ray trains in this process: leave out --workers and --ray-address")
    from passerelle.dataset import open_dataset
    from ray_cluster.watch import watch_run
    from training.config import load_recipe
    from training.model.sequence_model import MONITOR
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

    def show(line: dict[str, Any]) -> None:
        score = f", {MONITOR.replace('_', ' ')} {line[MONITOR]:.4f}" if MONITOR in line else ""
        stderr.print(
            f"epoch {line['epoch']}: loss {line['train_loss_epoch']:.4f}{score}, {line['seconds']:.1f} s"
        )

    with progress_bars() as progress, watch_run(out, progress, show):
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
    if as_json:
        reached = {
            "epochs": manifest.epochs,
            "best_epoch": manifest.best_epoch,
            "validation": manifest.validation,
        }
        print_json({"run": str(out), **reached, "trained_on": manifest.trained_on})
    elif not manifest.validation:  # trained on validation events too
        click.echo(f"{out}: trained on {manifest.trained_on}")
    else:
        score = manifest.validation[MONITOR]
        click.echo(
            f"{out}: {manifest.epochs} epochs, best is epoch {manifest.best_epoch} with validation NDCG@10 {score:.4f}"
        )
