"""Small datasets and logs that the tests of the contract share."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from passerelle.config import validate
from passerelle.dataset import Dataset
from passerelle.prepare import PrepareConfig
from tests.support.datasets import dataset_of

MakeDataset = Callable[[Sequence[Sequence[tuple[int, int]]]], Dataset]
WriteCsv = Callable[..., Path]


def config_of(events: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ({},), **rest: Any) -> PrepareConfig:
    """A configuration of `log.csv` with columns user, item, time; `events` changes the
    events section (or gives several).
    """
    usual = {"files": ["log.csv"], "user_id": "user", "item_id": "item", "timestamp": "time"}
    blocks = [events] if isinstance(events, Mapping) else events
    values = {
        "name": "test",
        "item_id_type": "string",
        "user_id_type": "string",
        "events": [usual | dict(block) for block in blocks],
    }
    return validate(PrepareConfig, values | rest, "test")


def histories(dataset: Dataset) -> dict[Any, list[Any]]:
    """User id -> item ids in stored order."""
    items = dataset.item_ids()
    spans = zip(
        dataset.users["user_id"].to_pylist(), dataset.offsets_U1[:-1], dataset.offsets_U1[1:], strict=True
    )
    return {user: items.ids(dataset.item_rows_E[start:end]) for user, start, end in spans}


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Write rows under `user,item,time` (or another header) as `logs/<name>`; returns the folder `logs`."""

    def write(
        rows: Sequence[Sequence[object]],
        name: str = "log.csv",
        header: Sequence[str] = ("user", "item", "time"),
    ) -> Path:
        folder = tmp_path / "logs"
        folder.mkdir(exist_ok=True)
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([header, *rows])
        return folder

    return write


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """A dataset of the given (item_row, timestamp_ms) events of each user, as `dataset_of` makes it, without
    items without events.
    """

    def make(events_of_users: Sequence[Sequence[tuple[int, int]]]) -> Dataset:
        num_items = max((row for events in events_of_users for row, _ in events), default=1) - 1
        return dataset_of(tmp_path / "dataset", events_of_users, num_items)

    return make
