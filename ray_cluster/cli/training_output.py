"""What `passerelle train` prints while a run is trained, and afterwards."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ray_cluster.cli.console import print_json, stderr

if TYPE_CHECKING:
    from training.runs.run import RunManifest


def print_epoch(line: dict[str, Any]) -> None:
    """Print one line of a run's history on stderr."""
    from training.model.sequence_model import MONITOR

    score = f", {MONITOR.replace('_', ' ')} {line[MONITOR]:.4f}" if MONITOR in line else ""
    stderr.print(
        f"epoch {line['epoch']}: loss {line['train_loss_epoch']:.4f}{score}, {line['seconds']:.1f} s"
    )


def print_run(out: Path, manifest: "RunManifest", *, as_json: bool) -> None:
    """Print the result of a run on stdout."""
    from training.model.sequence_model import MONITOR

    if as_json:
        reached = {
            "epochs": manifest.epochs,
            "best_epoch": manifest.best_epoch,
            "validation": manifest.validation,
        }
        print_json({"run": str(out), **reached, "trained_on": manifest.trained_on})
    elif not manifest.validation:
        # The run was trained on validation events too.
        click.echo(f"{out}: trained on {manifest.trained_on}")
    else:
        score = manifest.validation[MONITOR]
        click.echo(
            f"{out}: {manifest.epochs} epochs, best is epoch {manifest.best_epoch} "
            f"with validation NDCG@10 {score:.4f}"
        )
