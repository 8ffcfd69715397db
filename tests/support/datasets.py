"""Small datasets with a planted structure, and a recipe that learns it in seconds.

Most events are followed by the one item that comes next on a ring.
A model that reads the order of events finds it; popularity, drawn apart from the ring, cannot.

Shape legend: E events, U users, U1 = U + 1, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from passerelle.arrays import FloatArray, Int64Array
from passerelle.calendar_time import DAY_MS, HOUR_MS
from passerelle.config import apply_overrides, validate
from passerelle.dataset import Dataset, DatasetContents, FeatureColumn, write_dataset
from passerelle.ids import FIRST_ITEM_ROW
from tests.support.items import item_table

if TYPE_CHECKING:
    from training.config import Recipe

START_MS = 1_600_000_000_000
EVENT_WEIGHTS = (1.0, 2.5)
ITEM_FEATURES = (
    FeatureColumn(name="title", kind="text"),
    FeatureColumn(name="genres", kind="multi_categorical"),
    FeatureColumn(name="year", kind="numeric"),
)
USER_FEATURES = (FeatureColumn(name="country", kind="categorical"), FeatureColumn(name="age", kind="numeric"))
CONTEXT_FEATURES = (FeatureColumn(name="device", kind="categorical"),)
SMALL_RECIPE = (
    "model.dim=32",
    "model.max_history=12",
    "objective.mask_probability=0.3",
    "batches.token_budget=512",
    "optimizer.learning_rate=0.01",
    "optimizer.warmup_steps=10",
    "training.max_epochs=20",
    "training.threads=1",
    "training.log_every_steps=2",
    "ranker.num_candidates=40",
    "ranker.num_trees=30",
    "ranker.min_leaf_events=5",
)
"""Overrides of the defaults that suit `Planted()`."""


def small_recipe(*overrides: str) -> "Recipe":
    """The recipe of `SMALL_RECIPE` with some more `section.key=value`."""
    from training.config import Recipe  # here, because tests of the contract make datasets too

    causal = "objective.kind=causal" in overrides
    settings = [setting for setting in SMALL_RECIPE if not (causal and setting.startswith("objective.mask"))]
    return validate(Recipe, apply_overrides({}, [*settings, *overrides]), "small recipe", given=True)


@dataclass(frozen=True)
class Planted:
    """How large a dataset is, and how much of it follows the ring."""

    num_users: int = 240
    num_items: int = 120
    longest_history: int = 20
    shortest_history: int = 5
    follow_probability: float = 0.8
    span_days: int = 60
    """Days over which users arrive; each stays some days."""
    string_ids: bool = False


def planted_dataset(path: Path, planted: Planted = Planted(), seed: int = 0) -> Dataset:
    """Write a dataset whose users walk along a ring of items and jump now and then to popular ones; no user
    sees an item twice.
    """
    rng = np.random.default_rng(seed)
    lengths_U = rng.integers(planted.shortest_history, planted.longest_history + 1, size=planted.num_users)
    ring_I = rng.permutation(planted.num_items)
    successor_I = np.empty(planted.num_items, dtype=np.int64)
    successor_I[ring_I] = np.roll(ring_I, -1)
    popularity_I = (1.0 + rng.permutation(planted.num_items)) ** -0.5
    items_E = np.concatenate(
        [
            _walk(int(length), successor_I, popularity_I, planted.follow_probability, rng)
            for length in lengths_U
        ]
    )
    start_U = START_MS + rng.integers(planted.span_days * DAY_MS, size=planted.num_users)
    # gaps are whole hours, some of them zero, so that times repeat within a user
    times_E = np.concatenate(
        [
            start + HOUR_MS * np.cumsum(rng.integers(0, 13, size=n))
            for start, n in zip(start_U, lengths_U, strict=True)
        ]
    )
    types_E = rng.integers(len(EVENT_WEIGHTS), size=len(items_E))
    return write_dataset(
        path,
        DatasetContents(
            item_rows_E=items_E + FIRST_ITEM_ROW,
            timestamps_ms_E=times_E,
            event_types_E=types_E,
            weights_E=np.array(EVENT_WEIGHTS, dtype=np.float32)[types_E],
            offsets_U1=np.concatenate([[0], np.cumsum(lengths_U)]),
            users=pa.table(
                {
                    "user_id": _ids(planted.num_users, "usér ", planted.string_ids),
                    "country": pa.array(
                        [(None, "FR", "DE", "IT")[user % 4] for user in range(planted.num_users)]
                    ),
                    "age": pa.array(
                        [float(18 + user % 50) if user % 7 else None for user in range(planted.num_users)]
                    ),
                }
            ),
            items=item_table(_ids(planted.num_items, "商品 ", planted.string_ids), rng),
            contexts=pa.table(
                {
                    "device": pa.array(
                        (["mobile", "desktop", None] * len(items_E))[: len(items_E)]
                    ).dictionary_encode()
                }
            ),
            description={
                "name": "planted",
                "event_types": ("view", "purchase"),
                "user_features": USER_FEATURES,
                "context_features": CONTEXT_FEATURES,
                "item_features": ITEM_FEATURES,
                "title": "title",
                "config": {},
                "quality": {},
            },
        ),
    )


def dataset_of(
    path: Path, histories: Sequence[Sequence[tuple[int, int]]], num_items: int, weights: Sequence[float] = ()
) -> Dataset:
    """A dataset of the given (item_row, timestamp_ms) events of each user, in stored order; without
    `weights`, each weighs 1.

    Users are u0, u1, ..., items 100, 101, ...
    A dataset that is there already is replaced.
    """
    events = [event for history in histories for event in history]
    return write_dataset(
        path,
        DatasetContents(
            item_rows_E=np.array([row for row, _ in events], dtype=np.int64),
            timestamps_ms_E=np.array([time_ms for _, time_ms in events], dtype=np.int64),
            event_types_E=np.zeros(len(events), dtype=np.uint8),
            weights_E=np.array(weights or np.ones(len(events)), dtype=np.float32),
            offsets_U1=np.cumsum([0, *map(len, histories)]),
            users=pa.table({"user_id": [f"u{index}" for index in range(len(histories))]}),
            items=pa.table({"item_id": pa.array(range(100, 100 + num_items), pa.int64())}),
            description={
                "name": "by hand",
                "event_types": ("view",),
                "user_features": (),
                "item_features": (),
                "title": None,
                "config": {},
                "quality": {},
            },
        ),
        overwrite=True,
    )


def _walk(
    length: int,
    successor_I: Int64Array,
    popularity_I: FloatArray,
    follow_probability: float,
    rng: np.random.Generator,
) -> Int64Array:
    unseen_I = np.ones(len(successor_I), dtype=bool)
    walk: list[int] = []
    while len(walk) < length:
        item = int(successor_I[walk[-1]]) if walk and rng.random() < follow_probability else -1
        if item < 0 or not unseen_I[item]:
            chances_I = popularity_I * unseen_I
            item = int(rng.choice(len(chances_I), p=chances_I / chances_I.sum()))
        unseen_I[item] = False
        walk.append(item)
    return np.array(walk)


def _ids(count: int, prefix: str, string_ids: bool) -> pa.Array:
    """Strings that are not ASCII, or int64 that fit neither float32 nor int32."""
    if string_ids:
        return pa.array([f"{prefix}{index}" for index in range(count)], pa.string())
    return pa.array([2**40 + 3 * index for index in range(count)], pa.int64())
