"""`passerelle train RECIPE --dataset DATASET --out RUN`."""

from pathlib import Path
from typing import Any

import click

from ray_cluster.cli.console import json_option, print_json, progress_bars, set_option, stderr


@click.command()
@click.argument("recipe")
@click.option("--dataset", required=True, type=click.Path(path_type=Path), help="Dataset made by `passerelle prepare`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory to create (or, with --resume, to continue).")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Data-parallel Ray Train workers.")
@click.option("--no-ray", is_flag=True, help="Train in this process, without Ray.")
@click.option("--ray-address", metavar="ADDRESS", help="A running Ray cluster (`auto`, `ray://HOST:10001`); without it, Ray starts here.")
@click.option("--resume", is_flag=True, help="Continue the run from its last epoch.")
@set_option
@json_option
def command(
    recipe: str,
    dataset: Path,
    out: Path,
    workers: int,
    no_ray: bool,
    ray_address: str | None,
    resume: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train RECIPE (a name such as bert4rec, or a TOML file) on a prepared dataset.

    Training stops after `training.max_epochs`, or when validation NDCG@10 has not grown for `training.patience` validations;
    the best weights are kept. Watch it with `tensorboard --logdir RUN/tensorboard`.

    \b
    Examples:
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run --workers 2
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run --no-ray --set training.max_epochs=5
      passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run --resume
    """
    if no_ray and (workers > 1 or ray_address):
        raise click.UsageError("--no-ray trains in this process: leave out --workers and --ray-address")
    from passerelle.dataset import open_dataset
    from ray_cluster.watch import watch_run
    from training.config import load_recipe
    from training.sequence_model import MONITOR

    config = load_recipe(recipe, overrides)
    opened = open_dataset(dataset)

    def show(line: dict[str, Any]) -> None:
        score = f", {MONITOR.replace('_', ' ')} {line[MONITOR]:.4f}" if MONITOR in line else ""
        stderr.print(f"epoch {line['epoch']}: loss {line['train_loss_epoch']:.4f}{score}, {line['seconds']:.1f} s")

    with progress_bars() as progress, watch_run(out, progress, show):
        name = Path(recipe).stem
        if no_ray:
            from training.fit import train_in_process

            manifest = train_in_process(name, opened, config, out, resume=resume)
        else:
            from ray_cluster.training import train_on_ray

            manifest = train_on_ray(name, opened, config, out, num_workers=workers, resume=resume, address=ray_address)
    summary = {"run": str(out), "epochs": manifest.epochs, "best_epoch": manifest.best_epoch, "validation": manifest.validation}
    if as_json:
        print_json(summary)
    else:
        score = manifest.validation[MONITOR]
        click.echo(f"{out}: {manifest.epochs} epochs, best is epoch {manifest.best_epoch} with validation NDCG@10 {score:.4f}")
