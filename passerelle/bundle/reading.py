"""Open a bundle.

Shape legend: R item rows (special rows included), D vector width, L events of a user, U known users, S code
slots, F numbers of a user.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from passerelle.arrays import AnyArray, Float32Array, Float64Array, Int32Array, Int64Array
from passerelle.arrow import column, read_table
from passerelle.bundle.manifest import (
    BUNDLE_FILES,
    HISTORIES,
    HISTORY_VECTORS,
    ITEM_ENCODING,
    ITEM_VECTORS,
    ITEMS,
    POPULARITY,
    QUERY_ENCODING,
    USER_CODES,
    USER_NUMBERS,
    BundleManifest,
    ItemEncoding,
)
from passerelle.bundle.reference import Reference, read_reference
from passerelle.config import Config, validate
from passerelle.encoding import QueryEncoding
from passerelle.errors import UserError
from passerelle.event_types import event_type_codes
from passerelle.features import RankingFeatures
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID, USER_ID
from passerelle.manifest import open_manifest

C = TypeVar("C", bound=Config)


class History(NamedTuple):
    """Events of a known user, oldest first."""

    item_rows_L: Int64Array
    timestamps_ms_L: Int64Array
    event_types_L: Int64Array


@dataclass(frozen=True)
class Bundle:
    """An open bundle; large arrays are memory-mapped."""

    path: Path
    manifest: BundleManifest
    vectors_RD: Float32Array
    history_vectors_RD: Float32Array
    """Input of the query encoder for items of a history: `vectors_RD` for most models."""
    items: pa.Table
    counts_R: Float64Array
    recent_counts_R: Float64Array
    item_ids: IdMap
    user_ids: IdMap
    histories: tuple[pa.LargeListArray, ...]
    """A column for each field of `History`."""
    query_encoding: QueryEncoding
    user_codes_US: Int32Array | None
    """Codes of the known users by `query_encoding.user`; None where it has no columns."""
    user_numbers_UF: Float32Array | None

    def history(self, user_row: int) -> History:
        """Returns the history of a known user."""
        return History(
            *(np.asarray(column[user_row].values.to_numpy(), dtype=np.int64) for column in self.histories)
        )

    def seen(self, history: History) -> Int64Array:
        """Returns the distinct item rows of a history that are not to be recommended again."""
        manifest = self.manifest
        targets = event_type_codes(
            manifest.target_event_types, manifest.event_types, "target_event_types", str(self.path)
        )
        return np.unique(history.item_rows_L[np.isin(history.event_types_L, targets)])

    def ranking_features(self) -> RankingFeatures:
        """Returns the features of this catalogue that the ranker reads."""
        # A plain array: indexing a memory map makes an object of its class each time.
        vectors_RD = np.asarray(self.vectors_RD)
        return RankingFeatures(
            vectors_RD, self.counts_R, self.recent_counts_R, self.items, self.manifest.item_features
        )

    def reference(self) -> Reference:
        """Returns the answers that training computed for some users."""
        return read_reference(self.path)


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Memory-map a bundle; `verify` checks every file against its checksum first.

    Raises:
        UserError: not a bundle; a file is missing, truncated or altered; or its
            tables disagree with the manifest.
    """
    manifest = open_manifest(path, BundleManifest, verify=verify)
    absent = sorted(set(BUNDLE_FILES) - set(manifest.files))
    if absent:
        raise UserError(
            f"{path}: the manifest does not name {', '.join(absent)}: make it anew with `{manifest.MADE_BY}`"
        )
    if manifest.first_item_row != FIRST_ITEM_ROW:
        raise UserError(
            f"{path}: items start at row {manifest.first_item_row}, here at {FIRST_ITEM_ROW}: "
            f"make it anew with `{manifest.MADE_BY}`"
        )
    shape = (manifest.num_items + FIRST_ITEM_ROW, manifest.dim)
    vectors_RD = _mapped(path / ITEM_VECTORS, shape)
    history_vectors_RD = (
        _mapped(path / HISTORY_VECTORS, shape) if HISTORY_VECTORS in manifest.files else vectors_RD
    )
    encoding = QueryEncoding()
    if QUERY_ENCODING in manifest.files:
        encoding = _read_config(path / QUERY_ENCODING, QueryEncoding)
    items, users, popularity = read_table(path / ITEMS), read_histories(path), read_table(path / POPULARITY)
    return Bundle(
        path=path,
        manifest=manifest,
        vectors_RD=vectors_RD,
        history_vectors_RD=history_vectors_RD,
        items=items,
        counts_R=column(popularity, "count", np.float64),
        recent_counts_R=column(popularity, "recent_count", np.float64),
        item_ids=IdMap(items.column(ITEM_ID), first_row=FIRST_ITEM_ROW, name=ITEM_ID),
        user_ids=IdMap(users.column(USER_ID), first_row=0, name=USER_ID),
        histories=tuple(
            users.column(name).combine_chunks() for name in ("item_rows", "timestamps_ms", "event_types")
        ),
        query_encoding=encoding,
        user_codes_US=(
            _mapped(path / USER_CODES, (manifest.num_users, encoding.user.num_slots))
            if USER_CODES in manifest.files
            else None
        ),
        user_numbers_UF=(
            _mapped(path / USER_NUMBERS, (manifest.num_users, encoding.user.num_numbers))
            if USER_NUMBERS in manifest.files
            else None
        ),
    )


def read_histories(path: Path) -> pa.Table:
    """Memory-map the histories of the known users of the bundle at `path`.

    Raises:
        UserError: the file is missing or is not Arrow.
    """
    return read_table(path / HISTORIES)


def read_item_encoding(path: Path) -> ItemEncoding:
    """Read the encoding of items of the bundle at `path`, whose model has a candidate tower.

    Raises:
        UserError: it holds something else.
    """
    return _read_config(path / ITEM_ENCODING, ItemEncoding)


def _read_config(path: Path, model: type[C]) -> C:
    return validate(model, json.loads(path.read_text(encoding="utf-8")), str(path))


def _mapped(path: Path, expected: tuple[int, int]) -> AnyArray:
    values: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.shape != expected:
        raise UserError(f"{path}: shape {values.shape}, the manifest says {expected}")
    return values
