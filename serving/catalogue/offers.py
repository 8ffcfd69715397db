"""Offers of items, from a Parquet file that may change while it is served.

Shape legend: O offers.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from passerelle.arrays import Int64Array
from passerelle.column_types import is_list, is_text, normalize
from passerelle.column_values import as_text, parse_int64
from passerelle.dataset import LATITUDE, LONGITUDE, FeatureColumn, FeatureKind
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, IdMap, check_ids
from passerelle.ids import ITEM_ID

OFFER_ID = "offer_id"
PREFIX = "offer."

logger = logging.getLogger(__name__)


def is_offers(name: str) -> bool:
    """Returns whether a column is one of offers."""
    return name.startswith(PREFIX)


@dataclass(frozen=True)
class OfferTable:
    """Offers of known items, sorted by item row."""

    table: pa.Table
    item_rows: Int64Array
    """[O], ascending."""
    features: tuple[FeatureColumn, ...]
    ignored: int
    """Number of offers of items that the bundle does not have."""


def read_offers(path: Path, item_ids: IdMap) -> OfferTable:
    """Returns the offers of a Parquet file.

    Raises:
        UserError: the file cannot be read, lacks `offer_id` or `item_id`, repeats an offer, or its ids are of
            another type than those of the bundle.
    """
    table = _read(path)
    for name in (OFFER_ID, ITEM_ID):
        if name not in table.column_names:
            raise UserError(f"{path}: column {name} is missing")
        if table.column(name).null_count:
            raise UserError(f"{path}: {table.column(name).null_count} rows have no {name}")
    ids = {
        OFFER_ID: _ids(table.column(OFFER_ID), None, f"{path}: column {OFFER_ID}"),
        ITEM_ID: _ids(table.column(ITEM_ID), item_ids.type, f"{path}: column {ITEM_ID}"),
    }
    check_ids(ids[OFFER_ID], OFFER_ID, str(path))
    columns, features = {}, []
    for name in table.column_names:
        if name in ids:
            continue
        kind, values = _of_kind(table.column(name))
        if kind is None:
            logger.warning(
                "%s: column %r holds %s and is left out: no condition reads it", path, name, values.type
            )
            continue
        columns[name] = values
        features.append(FeatureColumn(name=name, kind=kind))
    rows = item_ids.rows(ids[ITEM_ID])
    known = np.flatnonzero(rows != UNKNOWN_ROW)
    order = known[np.argsort(rows[known], kind="stable")]
    kept = pa.table({**ids, **columns}).take(pa.array(order)).combine_chunks()
    return OfferTable(kept, rows[order], tuple(features), table.num_rows - len(order))


def _read(path: Path) -> pa.Table:
    """Returns the table of a Parquet file, with columns of the few types of `normalize`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        table = pyarrow.parquet.read_table(path, coerce_int96_timestamp_unit="us")
        columns = {name: normalize(table.column(name).combine_chunks()) for name in table.column_names}
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as a Parquet file ({error})") from None
    return pa.table(columns)


def _ids(column: pa.ChunkedArray, id_type: pa.DataType | None, where: str) -> pa.Array:
    """Returns ids as text or int64; of their own type, if none is wanted.

    Raises:
        UserError: they are not of that type.
    """
    values = column.combine_chunks()
    own_type = pa.int64() if pa.types.is_integer(values.type) else pa.string()
    try:
        if (id_type or own_type) == pa.string():
            return as_text(values, trim=False)
        integers, bad = parse_int64(values)
    except UserError as error:
        raise UserError(f"{where} {error}") from None
    if bad.any():
        example = values[int(np.argmax(bad))].as_py()
        raise UserError(f"{where}: ids of this bundle are integers of 64 bits, got {example!r}")
    return pa.array(integers)


def _of_kind(column: pa.ChunkedArray) -> tuple[FeatureKind | None, pa.Array]:
    """Returns the kind of feature that a column is, and its values as the kind has them."""
    values = column.combine_chunks()
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp", values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "numeric", values
    if pa.types.is_decimal(kind):
        return "numeric", values.cast(pa.float64(), safe=False)
    if is_list(kind) and is_text(kind.value_type):
        return "multi_categorical", values
    if is_text(kind) or pa.types.is_boolean(kind):
        return "categorical", values
    # Without a value, any kind would do.
    if pa.types.is_null(kind):
        return "categorical", values.cast(pa.string())
    if pa.types.is_struct(kind) and {part.name for part in kind} == {LATITUDE, LONGITUDE}:
        return "place", values
    return None, values
