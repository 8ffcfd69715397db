"""The dataset on disk: every user's events as one ragged, memory-mapped Arrow store.

    dataset/
      manifest.json         what it holds, how it was made, checksums, the data-quality report
      interactions.arrow    item_row, timestamp_ms, event_type, weight; by user, then time, ties in file order
      offsets.arrow         events of user_row u are offsets[u] : offsets[u + 1]
      users.arrow           user_id and user features; row i is user_row i
      items.arrow           item_id and item features; row i is item_row i + FIRST_ITEM_ROW
      contexts.arrow        context features of each event, in the order of interactions.arrow; optional

Shape legend: E events, U users, U1 = U + 1, I items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from passerelle.arrays import (
    BoolArray,
    Float32Array,
    FloatArray,
    Int32Array,
    Int64Array,
    IntArray,
    UInt8Array,
)
from passerelle.arrow import column, read_table, write_table
from passerelle.config import Config
from passerelle.event_types import event_type_codes
from passerelle.files import new_directory
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID, MAX_ITEM_ROW, TIMESTAMP_MS, USER_ID
from passerelle.manifest import Manifest, open_manifest, provenance, write_manifest

FeatureKind = Literal["categorical", "multi_categorical", "numeric", "text", "vector", "timestamp", "place"]

LATITUDE, LONGITUDE = "latitude", "longitude"
"""Fields of the value of a feature of kind `place`."""

Scaling = Literal["standard", "log"]

_FILES = ("interactions.arrow", "offsets.arrow", "users.arrow", "items.arrow")
_CONTEXTS = "contexts.arrow"


class FeatureColumn(Config):
    """One feature of users, items or contexts, as a column of `users.arrow`, `items.arrow` or
    `contexts.arrow`.

    Categorical values and text are strings, and several values a list of strings.
    Numbers are float64, vectors lists of float32 of one width, timestamps int64 milliseconds, places structs
    of latitude and longitude in degrees.
    Missing values are null.
    """

    name: str
    kind: FeatureKind
    scaling: Scaling | None = None
    """Numeric: how the input of networks is scaled; standardised if absent."""
    width: int | None = None
    """Vector: numbers in it."""
    from_events: Literal[True] | None = None
    """The feature is aggregated from all events, those of validation and test included."""


class DatasetManifest(Manifest):
    """`manifest.json` of a dataset."""

    KIND: ClassVar[str] = "dataset"
    MADE_BY: ClassVar[str] = "passerelle prepare"

    name: str
    num_users: int
    num_items: int
    num_events: int
    event_types: tuple[str, ...]
    """Names of the codes in the `event_type` column, in code order."""
    user_features: tuple[FeatureColumn, ...]
    item_features: tuple[FeatureColumn, ...]
    context_features: tuple[FeatureColumn, ...] = ()
    title: str | None
    """Item feature shown to people, where there is one."""
    config: dict[str, Any]
    """The resolved description the dataset was prepared from."""
    quality: dict[str, Any]
    """The data-quality report."""
    raw_files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file that the dataset was made from, by its path below the source folder."""


@dataclass(frozen=True)
class Dataset:
    """An open dataset; arrays are read-only views of the mapped files."""

    path: Path
    manifest: DatasetManifest
    item_rows_E: Int32Array
    timestamps_ms_E: Int64Array
    event_types_E: UInt8Array
    weights_E: Float32Array
    offsets_U1: Int64Array
    users: pa.Table
    items: pa.Table
    contexts: pa.Table
    """One row for each event; no column where no context features are declared."""

    @property
    def num_users(self) -> int:
        return len(self.offsets_U1) - 1

    @property
    def num_items(self) -> int:
        return int(self.items.num_rows)

    @property
    def num_rows(self) -> int:
        """Length of an array indexed by `item_row`: the items and the special rows before them."""
        return self.num_items + FIRST_ITEM_ROW

    def user_ids(self) -> IdMap:
        return IdMap(self.users.column(USER_ID), first_row=0, name=USER_ID)

    def item_ids(self) -> IdMap:
        return IdMap(self.items.column(ITEM_ID), first_row=FIRST_ITEM_ROW, name=ITEM_ID)

    def is_of_type(self, names: Sequence[str], where: str) -> BoolArray:
        """Returns which events [E] are of the named event types.

        Args:
            where: origin of the names, for the message.

        Raises:
            UserError: the dataset has no such event type.
        """
        codes = event_type_codes(names, self.manifest.event_types, where, str(self.path))
        return np.isin(self.event_types_E, codes)

    def user_rows_of(self, positions: Int64Array) -> Int64Array:
        """Returns the user row of each event, given by position."""
        return np.searchsorted(self.offsets_U1, positions, side="right") - 1

    def fingerprint(self) -> str:
        """Returns a checksum of the events, ids and features: training on equal ones gives equal models."""
        return "-".join(
            self.manifest.files[name].sha256[:12]
            for name in (*_FILES, _CONTEXTS)
            if name in self.manifest.files
        )


def open_dataset(path: Path, *, verify: bool = True) -> Dataset:
    """Memory-map a dataset; `verify` checks every file against its checksum first.

    Raises:
        UserError: not a dataset, or a file is missing, truncated or altered.
    """
    manifest = open_manifest(path, DatasetManifest, verify=verify)
    interactions = read_table(path / "interactions.arrow")
    return Dataset(
        path=path,
        manifest=manifest,
        item_rows_E=column(interactions, "item_row", np.int32),
        timestamps_ms_E=column(interactions, TIMESTAMP_MS, np.int64),
        event_types_E=column(interactions, "event_type", np.uint8),
        weights_E=column(interactions, "weight", np.float32),
        offsets_U1=column(read_table(path / "offsets.arrow"), "offset", np.int64),
        users=read_table(path / "users.arrow"),
        items=read_table(path / "items.arrow"),
        contexts=read_table(path / _CONTEXTS) if _CONTEXTS in manifest.files else pa.table({}),
    )


@dataclass(frozen=True)
class DatasetContents:
    """Everything that a dataset is written from; events are sorted by user, then time."""

    item_rows_E: IntArray
    """Item of each event; values from `FIRST_ITEM_ROW` up."""
    timestamps_ms_E: Int64Array
    event_types_E: IntArray
    """Codes of the event types: positions in `event_types` of the description."""
    weights_E: FloatArray
    offsets_U1: Int64Array
    """Events of `user_row` u are `offsets[u] : offsets[u + 1]`."""
    users: pa.Table
    """`user_id` first, then the user features, in `user_row` order."""
    items: pa.Table
    """`item_id` first, then the item features, in `item_row` order."""
    description: Mapping[str, Any]
    """The fields of `DatasetManifest` that are not counts or provenance: `name`, `event_types`,
    `user_features`, `item_features`, `title`, `config`, `quality`; and, with contexts, `context_features`.
    """
    contexts: pa.Table | None = None
    """Context features of each event, in the order of the events, where some are declared."""


def write_dataset(path: Path, contents: DatasetContents, *, overwrite: bool = False) -> Dataset:
    """Write a dataset in one step and open it.

    Raises:
        UserError: `path` exists and `overwrite` is false.
    """
    users, items, contexts = contents.users, contents.items, contents.contexts
    num_events = len(contents.item_rows_E)
    assert len(contents.offsets_U1) == users.num_rows + 1 and contents.offsets_U1[-1] == num_events, (
        "offsets do not cover the events"
    )
    assert items.num_rows + FIRST_ITEM_ROW <= MAX_ITEM_ROW, f"{items.num_rows} items do not fit int32 rows"
    interactions = pa.table(
        {
            "item_row": np.asarray(contents.item_rows_E, dtype=np.int32),
            TIMESTAMP_MS: np.asarray(contents.timestamps_ms_E, dtype=np.int64),
            "event_type": np.asarray(contents.event_types_E, dtype=np.uint8),
            "weight": np.asarray(contents.weights_E, dtype=np.float32),
        }
    )
    offsets = pa.table({"offset": np.asarray(contents.offsets_U1, dtype=np.int64)})
    with new_directory(path, overwrite=overwrite) as scratch:
        write_table(scratch / "interactions.arrow", interactions)
        write_table(scratch / "offsets.arrow", offsets)
        write_table(scratch / "users.arrow", users)
        write_table(scratch / "items.arrow", items)
        if contexts is not None:
            assert contexts.num_rows == num_events, "a row of context features for each event"
            write_table(scratch / _CONTEXTS, contexts)
        files = _FILES if contexts is None else (*_FILES, _CONTEXTS)
        common = provenance(DatasetManifest, scratch, files, libraries=("numpy", "pyarrow"))
        counts = {"num_users": users.num_rows, "num_items": items.num_rows, "num_events": num_events}
        write_manifest(scratch, DatasetManifest.model_validate({**common, **counts, **contents.description}))
    return open_dataset(path, verify=False)
