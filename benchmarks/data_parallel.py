"""Does it matter where a run is trained?

The same recipe and seed in one process, on one Ray worker, and on two.

    .venv/bin/python -m benchmarks.data_parallel --dataset artifacts/demo/dataset

About ten minutes on 2 cores.
Two workers share the two cores that one has alone, so their speed says nothing here; their figures do.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import environment, write_result
from passerelle.dataset import open_dataset
from ray_cluster.training import RayOptions, train_on_ray
from training.config import load_recipe
from training.evaluation.evaluate import evaluate
from training.model.sequence_model import MONITOR
from training.runs.callbacks import read_history
from training.runs.fit import train_in_process
from training.runs.open_run import load_run

EPOCHS = 5
MODEL = ("model.num_blocks=2", "model.max_history=100")
LAUNCHERS: dict[str, int | None] = {"no_ray": None, "one_worker": 1, "two_workers": 2}


@click.command()
@click.option(
    "--dataset", type=click.Path(path_type=Path, exists=True), required=True, help="A prepared dataset."
)
@click.option("--epochs", default=EPOCHS, show_default=True, help="Epochs a run.")
def main(dataset: Path, epochs: int) -> None:
    """Train everywhere, compare loss curves and test NDCG@10, and store one result file."""
    started = environment()
    opened = open_dataset(dataset)
    config = load_recipe("bert4rec", (*MODEL, f"training.max_epochs={epochs}"))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, num_workers in LAUNCHERS.items():
            run = Path(folder) / name
            begun_s = time.perf_counter()
            if num_workers is None:
                train_in_process("bert4rec", opened, config, run)
            else:
                train_on_ray("bert4rec", opened, config, run, RayOptions(num_workers=num_workers))
            seconds = round(time.perf_counter() - begun_s, 1)
            history = read_history(run)
            curves = {what: [line[what] for line in history] for what in ("train_loss_epoch", MONITOR)}
            metrics = evaluate(load_run(run, dataset), "test", (10,))
            results[name] = {
                "seconds": seconds,
                **curves,
                "test": metrics["model"],
                "popularity": metrics["popularity"],
            }
            click.echo(f"{name}: {results[name]}", err=True)
    reference = results["no_ray"]
    for result in results.values():
        pairs = zip(result["train_loss_epoch"], reference["train_loss_epoch"], strict=True)
        result["max_loss_difference"] = max(abs(ours - theirs) for ours, theirs in pairs)
        result["ndcg_ratio"] = result["test"]["ndcg@10"] / reference["test"]["ndcg@10"]
    write_result(
        "data_parallel",
        started,
        {"dataset": opened.manifest.name, "config": config.model_dump(mode="json"), "launchers": results},
    )


if __name__ == "__main__":
    main()
