"""The data sets that quality is measured on, prepared once and kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from passerelle.arrays import Int64Array
from passerelle.dataset import Dataset, DatasetContents, open_dataset, write_dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.prepare.config import EventsConfig, PrepareConfig, SourceConfig, load_prepare_config
from passerelle.prepare.pipeline import prepare
from passerelle.prepare.sources import find_source, resolve_files

FOLDER = Path("artifacts/quality/data")
_DESCRIPTION = (
    "name",
    "event_types",
    "user_features",
    "item_features",
    "context_features",
    "title",
    "config",
    "quality",
)


def with_events(dataset: Dataset, positions_E: Int64Array, offsets_U1: Int64Array, path: Path) -> Dataset:
    """The dataset with some of its events, and all of its users and items."""
    arrays = ("item_rows_E", "timestamps_ms_E", "event_types_E", "weights_E")
    return write_dataset(
        path,
        DatasetContents(
            **{name: getattr(dataset, name)[positions_E] for name in arrays},
            offsets_U1=offsets_U1,
            users=dataset.users,
            items=dataset.items,
            contexts=dataset.contexts.take(pa.array(positions_E)) if dataset.contexts.column_names else None,
            description=dataset.manifest.model_dump(include={*_DESCRIPTION}),
        ),
    )


def _movielens_1m(*overrides: str) -> Callable[[Path], Dataset]:
    def make(path: Path) -> Dataset:
        config = load_prepare_config("movielens-1m", overrides)
        return prepare(config, find_source(config, None), path)

    return make


BEAUTY = PrepareConfig(
    name="amazon-beauty-5core",
    item_id_type="int64",
    user_id_type="int64",
    source=SourceConfig(
        folder="amazon-beauty-5core",
        page="https://github.com/RUCAIBox/CIKM2020-S3Rec",
        instructions="Beauty.txt of its folder `data` goes in one folder",
    ),
    events=(EventsConfig(files=("Beauty.txt",), user_id="user_id", item_id="item_id", timestamp="time"),),
)
"""The source of the file, which `_beauty` reads: a line of it is a user, not an event."""


def _beauty(path: Path) -> Dataset:
    """Lines of a user and then its items in the order of time, which itself is not in the file: event n has
    the time n.
    """
    (source,) = resolve_files(find_source(BEAUTY, None), BEAUTY.events[0].files)
    with pa.input_stream(source) as stream:
        rows = [np.array(line.split(), dtype=np.int64) for line in stream.read().decode().splitlines()]
    items_E = np.concatenate([row[1:] for row in rows])
    item_ids, positions_E = np.unique(items_E, return_inverse=True)
    events = PlainEvents(
        item_rows_E=positions_E + FIRST_ITEM_ROW,
        timestamps_ms_E=np.concatenate([np.arange(1, len(row)) for row in rows]),
        lengths_U=np.array([len(row) - 1 for row in rows]),
        user_ids=[int(row[0]) for row in rows],
        item_ids=item_ids,
    )
    return plain_dataset(path, BEAUTY.name, "review", events)


@dataclass(frozen=True)
class PlainEvents:
    """Events of one type and weight 1, sorted by user, then time; users and items have ids and no
    features.
    """

    item_rows_E: Int64Array
    timestamps_ms_E: Int64Array
    lengths_U: Int64Array
    """Events of each user."""
    user_ids: Any
    """One a user, in a type that Arrow takes."""
    item_ids: Any


def plain_dataset(path: Path, name: str, event_type: str, events: PlainEvents) -> Dataset:
    """Writes a dataset of such events."""
    num_events = len(events.item_rows_E)
    return write_dataset(
        path,
        DatasetContents(
            item_rows_E=events.item_rows_E,
            timestamps_ms_E=events.timestamps_ms_E,
            event_types_E=np.zeros(num_events, dtype=np.uint8),
            weights_E=np.ones(num_events, dtype=np.float32),
            offsets_U1=np.concatenate([[0], np.cumsum(events.lengths_U)]),
            users=pa.table({"user_id": events.user_ids}),
            items=pa.table({"item_id": events.item_ids}),
            description={
                "name": name,
                "event_types": (event_type,),
                "user_features": (),
                "item_features": (),
                "title": None,
                "config": {},
                "quality": {},
            },
        ),
    )


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "ml-1m_sasrec": _movielens_1m(),
    "ml-1m": _movielens_1m("filters.min_item_events=1", "filters.min_user_events=1"),
    "beauty": _beauty,
}
"""`ml-1m_sasrec`: the 3,416 items of the papers' file, with times.
`ml-1m`: all 3,706.
`beauty`: Amazon reviews, 5-core, without times."""


def quality_dataset(name: str) -> Dataset:
    """The data set, prepared into `artifacts/quality/data` if it is not there yet."""
    path = FOLDER / name
    return open_dataset(path) if path.exists() else DATASETS[name](path)
