"""What each choice of the `bert4rec` recipe is worth: validation NDCG@10 after a few epochs, one change at a time.

    .venv/bin/python -m benchmarks.recipe_ablation --dataset artifacts/demo/dataset

About a minute a variant on 2 quiet cores. One seed and few epochs: it says what learns quickly, not what is best in the end.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import environment, write_result
from passerelle.dataset import open_dataset
from training.config import load_recipe
from training.fit import train_in_process
from training.sequence_model import MONITOR

VARIANTS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "no distance slopes": ("model.distance_slopes=[0.0, 0.0]",),
    "steeper slopes": ("model.distance_slopes=[1.0, 0.1]",),
    "mask 0.2": ("objective.mask_probability=0.2",),
    "mask 0.6": ("objective.mask_probability=0.6",),
    "history 200": ("model.max_history=200",),
    "token budget 12800": ("batches.token_budget=12800",),
    "learning rate 1e-3": ("optimizer.learning_rate=1e-3",),
    "no decay": ("optimizer.decay_fraction=0.0",),
    "sampled softmax, 256 uniform": ("loss.kind=sampled",),
    "sampled softmax, 256 by popularity": ("loss.kind=sampled", "loss.sampler=popularity"),
}


@click.command()
@click.option("--dataset", type=click.Path(path_type=Path, exists=True), required=True, help="A prepared dataset.")
@click.option("--epochs", default=4, show_default=True, help="Epochs a variant.")
def main(dataset: Path, epochs: int) -> None:
    """Train each variant and store one result file."""
    started = environment()
    opened = open_dataset(dataset)
    results: dict[str, dict[str, Any]] = {}
    for name, overrides in VARIANTS.items():
        config = load_recipe("bert4rec", (*overrides, f"training.max_epochs={epochs}"))
        begun_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            manifest = train_in_process("bert4rec", opened, config, Path(folder) / "run")
        results[name] = {"overrides": overrides, MONITOR: manifest.validation[MONITOR], "seconds": round(time.perf_counter() - begun_s, 1)}
        click.echo(f"{name}: {results[name]}", err=True)
    recipe = load_recipe("bert4rec", (f"training.max_epochs={epochs}",)).model_dump(mode="json")
    write_result("recipe_ablation", started, {"dataset": opened.manifest.name, "recipe": recipe, "variants": results})


if __name__ == "__main__":
    main()
