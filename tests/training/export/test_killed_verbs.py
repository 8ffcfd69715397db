"""`kill -9` while a verb overwrites what it made: the old or the new, whole, and never neither.

Slow, as each verb is killed at 200 random moments; the mechanism itself is tested in
tests/passerelle/test_overwriting.py.
"""

import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest

from passerelle.bundle import Bundle, open_bundle
from passerelle.config import validate
from passerelle.dataset import open_dataset
from passerelle.ids import ITEM_ID
from passerelle.prepare import prepare
from passerelle.prepare.config import PrepareConfig
from serving.retrievers.index_store import build_index, open_retriever
from tests.support.kills import kill_within, seconds_of
from training.export.bundle import export
from training.export.new_items import add_items
from training.ranker import load_ranker, train_ranker
from training.runs.open_run import OpenRun, load_run

MOMENTS = 200


@dataclass(frozen=True)
class Verb:
    """A verb that overwrites its result; each call makes another one."""

    run: Callable[[int], object]
    """Makes the result of a number."""
    opened: Callable[[], object]
    """Opens the result, verifies it, and returns what tells it from others."""


def prepare_verb(folder: Path, _run: OpenRun, _towers: Bundle) -> Verb:
    described = {
        "name": "killed",
        "user_id_type": "string",
        "item_id_type": "int64",
        "events": [{"files": ["log.csv"], "user_id": "u", "item_id": "i", "timestamp": "t"}],
    }
    config = validate(PrepareConfig, described, "test", given=True)

    def run(number: int) -> None:
        (folder / str(number)).mkdir(exist_ok=True)
        users = [f"u{row % 50}" for row in range(1000)] + [f"only {number}"]
        log = pa.table({"u": users, "i": range(len(users)), "t": range(len(users))})
        pyarrow.csv.write_csv(log, folder / str(number) / "log.csv")
        prepare(config, folder / str(number), folder / "out", overwrite=True)

    def opened() -> object:
        users = open_dataset(folder / "out", verify=True).users["user_id"].to_pylist()
        return next(user for user in users if user.startswith("only"))

    return Verb(run, opened)


def ranker_verb(folder: Path, run: OpenRun, _towers: Bundle) -> Verb:
    shutil.copytree(run.path, folder / "run")

    def train(number: int) -> None:
        opened = load_run(folder / "run", run.dataset.path)
        config = opened.manifest.config
        ranker = config.ranker.model_copy(update={"num_trees": 5 + number % 7, "learning_rate": 1e-6})
        manifest = opened.manifest.model_copy(update={"config": config.model_copy(update={"ranker": ranker})})
        train_ranker(replace(opened, manifest=manifest), overwrite=True)

    def opened() -> object:
        load_run(folder / "run", run.dataset.path)
        return load_ranker(folder / "run").booster.model_to_string()

    return Verb(train, opened)


def export_verb(folder: Path, run: OpenRun, _towers: Bundle) -> Verb:
    return Verb(
        lambda _: export(run, folder / "out", overwrite=True),
        lambda: open_bundle(folder / "out", verify=True).manifest.created_at,
    )


def add_items_verb(folder: Path, _run: OpenRun, towers: Bundle) -> Verb:
    like = towers.items.slice(0, 1)

    def run(number: int) -> None:
        table = like.set_column(0, ITEM_ID, pa.array([10_000 + number], towers.item_ids.type))
        add_items(towers.path, table, folder / "out", overwrite=True)

    return Verb(run, lambda: open_bundle(folder / "out", verify=True).items[ITEM_ID].to_pylist()[-1])


def index_verb(folder: Path, _run: OpenRun, towers: Bundle) -> Verb:
    shutil.copytree(towers.path, folder / "bundle")

    def run(number: int) -> None:
        build_index(
            open_bundle(folder / "bundle"), "faiss", target_recall=0.5 + number % 100 / 1000, overwrite=True
        )

    def opened() -> object:
        _, manifest = open_retriever(open_bundle(folder / "bundle"))
        assert manifest is not None
        return manifest.target_recall, manifest.created_at

    return Verb(run, opened)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "make",
    [prepare_verb, ranker_verb, index_verb, add_items_verb, export_verb],
    ids=lambda make: make.__name__,
)
def test_a_verb_killed_at_any_moment_leaves_the_old_or_the_new(
    tmp_path: Path, two_tower: OpenRun, towers: Bundle, make: Callable[[Path, OpenRun, Bundle], Verb]
) -> None:
    verb, rng, numbers = make(tmp_path, two_tower, towers), random.Random(1), itertools.count()
    duration_s = min(seconds_of(partial(verb.run, next(numbers))) for _ in range(3))
    seen: set[Any] = {verb.opened()}
    num_killed = num_new = 0
    while num_killed < MOMENTS:
        num_killed += kill_within(partial(verb.run, next(numbers)), 1.1 * duration_s, rng)
        found = verb.opened()
        num_new += found not in seen
        seen.add(found)
    assert num_new > 0
