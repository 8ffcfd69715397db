"""Small datasets and logs that the tests of the contract share."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from passerelle.config import validate
from passerelle.dataset import Dataset, write_dataset
from passerelle.prepare import PrepareConfig

MakeDataset = Callable[[Sequence[Sequence[tuple[int, int]]]], Dataset]
WriteCsv = Callable[..., Path]


def config_of(events: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ({},), **rest: Any) -> PrepareConfig:
    """A configuration of `log.csv` with columns user, item, time; `events` changes the events section (or gives several)."""
    usual = {"files": ["log.csv"], "user_id": "user", "item_id": "item", "timestamp": "time"}
    blocks = [events] if isinstance(events, Mapping) else events
    values = {"name": "test", "item_id_type": "string", "user_id_type": "string", "events": [usual | dict(block) for block in blocks]}
    return validate(PrepareConfig, values | rest, "test")


def histories(dataset: Dataset) -> dict[Any, list[Any]]:
    """User id -> item ids in stored order."""
    items = dataset.item_ids()
    spans = zip(dataset.users["user_id"].to_pylist(), dataset.offsets_U1[:-1], dataset.offsets_U1[1:], strict=True)
    return {user: items.ids(dataset.item_rows_E[start:end]) for user, start, end in spans}


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Write rows under `user,item,time` (or another header) as `logs/<name>`; returns the folder `logs`."""

    def write(rows: Sequence[Sequence[object]], name: str = "log.csv", header: Sequence[str] = ("user", "item", "time")) -> Path:
        folder = tmp_path / "logs"
        folder.mkdir(exist_ok=True)
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([header, *rows])
        return folder

    return write


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """A dataset of the given (item_row, timestamp_ms) events of each user, in stored order; items are numbered 100, 101, ..."""

    def make(events_of_users: Sequence[Sequence[tuple[int, int]]]) -> Dataset:
        flat = [event for events in events_of_users for event in events]
        num_items = max((row for row, _ in flat), default=1) - 1
        return write_dataset(
            tmp_path / "dataset",
            item_rows_E=np.array([row for row, _ in flat], dtype=np.int64),
            timestamps_ms_E=np.array([time for _, time in flat], dtype=np.int64),
            event_types_E=np.zeros(len(flat), dtype=np.uint8),
            weights_E=np.ones(len(flat), dtype=np.float32),
            offsets_U1=np.cumsum([0, *map(len, events_of_users)]),
            users=pa.table({"user_id": pa.array([f"u{place}" for place in range(len(events_of_users))])}),
            items=pa.table({"item_id": pa.array(range(100, 100 + num_items), pa.int64())}),
            description={
                "name": "small",
                "event_types": ("event",),
                "user_features": (),
                "item_features": (),
                "title": None,
                "config": {},
                "quality": {},
            },
            overwrite=True,
        )

    return make
