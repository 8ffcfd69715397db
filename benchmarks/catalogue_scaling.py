"""The cost of a training step as the catalogue grows.

Time and memory with a sparse table, and with a dense one under Adam.
It takes about ten minutes on 2 quiet cores, and 12 GiB.

    .venv/bin/python -m benchmarks.catalogue_scaling
    .venv/bin/python -m benchmarks.catalogue_scaling --items 10000,1000000 --tables sparse

Every row is a run of the `sasrec` recipe with sampled softmax, in a process of its own; batches have the
same shape whatever the catalogue.
`bytes_above_tables` is what the process held at its peak beyond the vectors and their optimizer's state.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.harness import apart, environment, peak_bytes, write_result
from benchmarks.synthetic import synthetic_dataset
from benchmarks.training_throughput import Stopwatch
from passerelle.ids import FIRST_ITEM_ROW
from training.config import load_recipe
from training.runs.fit import fit
from training.runs.run import plan_run, start_run

DIM, LENGTH, TOKEN_BUDGET, NUM_NEGATIVES = 64, 50, 12_800, 256
BYTES_OF_A_ROW = {"sparse": 4 * DIM + 4, "dense": 3 * 4 * DIM}
"""The vector with one number of row-wise Adagrad, or with Adam's two a value."""


class Measured(Stopwatch):
    """Also notes the memory when the clock stops: a checkpoint that is written later is not part of a
    step.
    """

    peak_bytes = 0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.seconds and not self.peak_bytes:
            self.peak_bytes = peak_bytes()


def measure(num_items: int, table: str, warmup: int, steps: int) -> dict[str, Any]:
    """The figures of one run, in this process."""
    config = load_recipe(
        "sasrec",
        (
            f"items.table={table}",
            f"model.max_history={LENGTH}",
            f"model.dim={DIM}",
            "loss.kind=sampled",
            f"loss.num_negatives={NUM_NEGATIVES}",
            f"batches.token_budget={TOKEN_BUDGET}",
            "training.max_epochs=1",
            "training.include_validation=true",
        ),
    )
    watch = Measured(warmup=warmup, steps=steps, profiled=False, compiled=False)
    with tempfile.TemporaryDirectory() as folder:
        dataset = synthetic_dataset(
            Path(folder) / "data", num_events=60 * TOKEN_BUDGET, length=LENGTH, num_items=num_items
        )
        before_bytes = peak_bytes()
        run = Path(folder) / "run"
        start_run(run, plan_run(run, "sasrec", dataset, config, resume=False))
        fit(dataset, config, run, callbacks=[watch])
    table_bytes = (num_items + FIRST_ITEM_ROW) * BYTES_OF_A_ROW[table]
    return {
        "step_ms": 1000 * watch.seconds / steps,
        "tokens_per_step": watch.tokens / steps,
        "table_bytes": table_bytes,
        "bytes_above_tables": watch.peak_bytes - before_bytes - table_bytes,
    }


@click.command()
@click.option(
    "--items",
    default="10000,100000,1000000,10000000,100000000",
    show_default=True,
    help="Sizes of the catalogue.",
)
@click.option("--tables", default="sparse,dense", show_default=True)
@click.option("--warmup", default=3, show_default=True, help="Steps before the clock starts.")
@click.option("--steps", default=10, show_default=True, help="Timed steps.")
def main(items: str, tables: str, warmup: int, steps: int) -> None:
    """Measure every size with every table that fits, and store one result file."""
    started = environment()
    rows: list[dict[str, Any]] = []
    for table in tables.split(","):
        for num_items in map(int, items.split(",")):
            row: dict[str, Any] = {"table": table, "num_items": num_items}
            # A dense table also has a gradient of its size.
            needed = num_items * (BYTES_OF_A_ROW[table] + (4 * DIM if table == "dense" else 0)) + 2**31
            if needed > psutil.virtual_memory().available:
                row["not_run"] = f"needs about {needed / 2**30:.0f} GiB of memory"
            else:
                row |= apart(measure, num_items, table, warmup, steps)
            rows.append(row)
            click.echo(str(row), err=True)
    shape = {"dim": DIM, "length": LENGTH, "token_budget": TOKEN_BUDGET, "num_negatives": NUM_NEGATIVES}
    write_result("catalogue_scaling", started, {**shape, "warmup": warmup, "steps": steps, "rows": rows})


if __name__ == "__main__":
    main()
