"""The time until new items can be found.

`add-items` with 10,000 of them on a bundle of a million, then a search that finds one.

    .venv/bin/python -m benchmarks.add_items        (about five minutes on 2 cores)

The bundle is of a two-tower model that has trained for a few steps on made-up histories: what a vector is
worth has no bearing on how long it takes.
Timed is the command as a user types it, with its start and its checks.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from benchmarks.harness import environment, write_result
from passerelle.bundle import Bundle, open_bundle
from passerelle.dataset import Dataset, DatasetContents, FeatureColumn, write_dataset
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID, USER_ID
from serving.schemas.recommend import SimilarRequest
from serving.stages.retrieval import Retrieval
from serving.stages.types import RequestTime
from training.config import load_recipe
from training.export.bundle import export
from training.ranker import train_ranker
from training.runs.fit import train_in_process
from training.runs.open_run import load_run

NUM_USERS, LENGTH, VALUES = 2_000, 20, 200
MET_ITEMS = 5_000
"""Items that somebody has met, some far oftener than others; the rest of the catalogue is new, too."""
ASKED, K = 100, 100
FEATURES = (
    FeatureColumn(name="brand", kind="categorical"),
    FeatureColumn(name="tags", kind="multi_categorical"),
    FeatureColumn(name="price", kind="numeric", scaling="log"),
    FeatureColumn(name="image", kind="vector", width=64),
)


def made_up_items(first_id: int, count: int, rng: np.random.Generator) -> pa.Table:
    """Items with a feature of every kind."""
    names = pa.array([f"value {number}" for number in range(VALUES)])
    offsets = pa.array(np.arange(0, 2 * count + 1, 2), pa.int32())
    image = pa.array(rng.standard_normal(64 * count, dtype=np.float32))
    return pa.table(
        {
            ITEM_ID: np.arange(first_id, first_id + count),
            "brand": names.take(pa.array(rng.integers(VALUES, size=count))),
            "tags": pa.ListArray.from_arrays(
                offsets, names.take(pa.array(rng.integers(VALUES, size=2 * count)))
            ),
            "price": rng.lognormal(3, 1, size=count),
            "image": pa.LargeListArray.from_arrays(pa.array(np.arange(0, 64 * count + 1, 64)), image),
        }
    )


def made_up_dataset(path: Path, num_items: int, rng: np.random.Generator) -> Dataset:
    """Histories of the items met, by Zipf's law."""
    count = NUM_USERS * LENGTH
    ranks_E = np.floor(np.exp(rng.random(count) * np.log(MET_ITEMS))).astype(np.int64)
    return write_dataset(
        path,
        DatasetContents(
            item_rows_E=ranks_E - 1 + FIRST_ITEM_ROW,
            timestamps_ms_E=np.arange(count) * 60_000,
            event_types_E=np.zeros(count, dtype=np.uint8),
            weights_E=np.ones(count),
            offsets_U1=np.arange(0, count + 1, LENGTH),
            users=pa.table({USER_ID: np.arange(NUM_USERS)}),
            items=made_up_items(0, num_items, rng),
            description={
                "name": f"made-up-{num_items}",
                "event_types": ("event",),
                "user_features": (),
                "item_features": FEATURES,
                "title": None,
                "config": {},
                "quality": {},
            },
        ),
    )


def made_up_bundle(folder: Path, num_items: int, rng: np.random.Generator) -> Bundle:
    """Returns candidates of a model that scores by popularity alone."""
    settings = (
        "items.table=sparse",
        f"model.max_history={LENGTH}",
        "training.max_epochs=3",
        "training.validate_every_epochs=3",
    )
    config = load_recipe("two_tower", settings)
    dataset = made_up_dataset(folder / "dataset", num_items, rng)
    train_in_process("two_tower", dataset, config, folder / "run")
    run = load_run(folder / "run")
    train_ranker(run)
    return export(run, folder / "bundle")


@click.command()
@click.option("--items", "num_items", default=1_000_000, show_default=True, help="In the bundle.")
@click.option("--new", "num_new", default=10_000, show_default=True, help="Added.")
def main(num_items: int, num_new: int) -> None:
    """Make a bundle, add items, look for them, and store one result file."""
    started, rng = environment(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made_up_bundle(folder, num_items, rng)
        pyarrow.parquet.write_table(made_up_items(num_items, num_new, rng), folder / "new.parquet")
        command = [
            str(Path(sys.executable).with_name("passerelle")),
            "add-items",
            "bundle",
            "new.parquet",
            "--out",
            "grown",
        ]
        begun_s = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        added_s = time.perf_counter() - begun_s
        begun_s = time.perf_counter()
        grown = open_bundle(folder / "grown")
        retrieval = Retrieval(grown)
        ready_s = time.perf_counter() - begun_s
        found = _found(grown, retrieval, num_items, rng)
    values = {
        "items": num_items,
        "new": num_new,
        "add_items_s": added_s,
        "open_and_index_s": ready_s,
        **found,
    }
    write_result("add_items", started, values)


def _found(grown: Bundle, retrieval: Retrieval, num_items: int, rng: np.random.Generator) -> dict[str, int]:
    """Of the new items among the exact hundred most similar to old ones near to some of them, how many
    `similar` finds.
    """
    vectors_RD = np.asarray(grown.vectors_RD)
    first_new = num_items + FIRST_ITEM_ROW
    expected = there = 0
    for new in rng.choice(np.arange(first_new, len(vectors_RD)), ASKED, replace=False):
        near = int(np.argmax((vectors_RD @ vectors_RD[new])[FIRST_ITEM_ROW:first_new])) + FIRST_ITEM_ROW
        cosines_R = vectors_RD @ vectors_RD[near]
        cosines_R[near] = -np.inf
        best = set(np.argpartition(-cosines_R, K)[:K].tolist())
        answered = set(
            asyncio.run(
                retrieval.similar(SimilarRequest(item_id=0), [near], K, RequestTime.read(None))
            ).rows_C.tolist()
        )
        expected += sum(row >= first_new for row in best)
        there += sum(row >= first_new for row in best & answered)
    return {"asked": ASKED, "new_among_exact": expected, "of_these_found": there}


if __name__ == "__main__":
    main()
