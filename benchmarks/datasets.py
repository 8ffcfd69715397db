"""The data sets that quality is measured on, prepared once and kept."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from passerelle.dataset import Dataset, open_dataset, write_dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.prepare.config import load_prepare_config
from passerelle.prepare.pipeline import prepare
from passerelle.prepare.sources import find_source


def _movielens_1m(*overrides: str) -> Callable[[Path], Dataset]:
    def make(path: Path) -> Dataset:
        config = load_prepare_config("movielens-1m", overrides)
        return prepare(config, find_source(config, None), path)

    return make


def _beauty(path: Path) -> Dataset:
    """Lines of a user and then its items in the order of time, which itself is not in the file: event n has the time n."""
    name = Path("amazon-beauty-5core") / "Beauty.txt.gz"
    places = [Path(folder) / name for folder in (os.environ.get("PASSERELLE_DATA"), "../shared/data") if folder]
    source = next((place for place in places if place.is_file()), None)
    if source is None:
        raise UserError(f"no {name} in {', '.join(str(place.parent.parent) for place in places)}: put it there")
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        rows = [np.array(line.split(), dtype=np.int64) for line in lines]
    items_E = np.concatenate([row[1:] for row in rows])
    item_ids, positions_E = np.unique(items_E, return_inverse=True)
    return write_dataset(
        path,
        item_rows_E=positions_E + FIRST_ITEM_ROW,
        timestamps_ms_E=np.concatenate([np.arange(1, len(row)) for row in rows]),
        event_types_E=np.zeros(len(items_E), dtype=np.uint8),
        weights_E=np.ones(len(items_E), dtype=np.float32),
        offsets_U1=np.concatenate([[0], np.cumsum([len(row) - 1 for row in rows])]),
        users=pa.table({"user_id": [int(row[0]) for row in rows]}),
        items=pa.table({"item_id": item_ids}),
        description={
            "name": "amazon-beauty-5core",
            "event_types": ("review",),
            "user_features": (),
            "item_features": (),
            "title": None,
            "config": {},
            "quality": {},
        },
    )


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "ml-1m_sasrec": _movielens_1m(),
    "ml-1m": _movielens_1m("filters.min_item_events=1", "filters.min_user_events=1"),
    "beauty": _beauty,
}
"""`ml-1m_sasrec`: the 3,416 items of the papers' file, with times. `ml-1m`: all 3,706. `beauty`: Amazon reviews, 5-core, without times."""


def quality_dataset(name: str, folder: Path) -> Dataset:
    """The data set, prepared into `folder` if it is not there yet."""
    path = folder / name
    return open_dataset(path) if path.exists() else DATASETS[name](path)
