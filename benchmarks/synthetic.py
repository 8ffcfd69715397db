"""Histories to time training on: lengths like MovieLens', items by Zipf's law, nothing to be learnt."""

from pathlib import Path

import numpy as np

from benchmarks.datasets import PlainEvents, plain_dataset
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW

MEDIAN_SHARE = 0.5
SPREAD = 0.8
SHORTEST = 5


def synthetic_dataset(path: Path, *, num_events: int, length: int, num_items: int, seed: int = 0) -> Dataset:
    """At least `num_events` events, and less than a history more, in histories of 5 to `length` + 1.

    Lengths are log-normal around half of `length`, so that some histories are short and many are cut, as in
    data of people.
    """
    rng = np.random.default_rng(seed)
    drawn_U = rng.lognormal(np.log(length * MEDIAN_SHARE), SPREAD, size=num_events // SHORTEST + 1)
    lengths_U = np.clip(drawn_U, SHORTEST, length + 1).astype(np.int64)
    lengths_U = lengths_U[: np.searchsorted(lengths_U.cumsum(), num_events) + 1]
    total = int(lengths_U.sum())
    ranks_E = np.floor(np.exp(rng.random(total) * np.log(num_items + 1))).astype(
        np.int64
    )  # P(rank <= r) = log(r + 1) / log(n + 1)
    events = PlainEvents(
        item_rows_E=np.minimum(ranks_E, num_items) - 1 + FIRST_ITEM_ROW,
        timestamps_ms_E=np.arange(1, total + 1, dtype=np.int64) * 60_000,
        lengths_U=lengths_U,
        user_ids=np.arange(len(lengths_U)),
        item_ids=np.arange(num_items),
    )
    return plain_dataset(path, f"synthetic-{num_items}x{length}", "event", events)
