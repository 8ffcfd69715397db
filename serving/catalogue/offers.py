"""Offers of items, from a Parquet file that may change while it is served.

Shape legend: O offers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from passerelle.arrays import Int64Array
from passerelle.dataset import LATITUDE, LONGITUDE, FeatureColumn, FeatureKind
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, IdMap, check_ids
from passerelle.ids import ITEM_ID

OFFER_ID = "offer_id"
PREFIX = "offer."


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
        UserError: the file cannot be read, lacks `offer_id` or `item_id`, repeats an offer, or has a column
            of an unsupported type.
    """
    try:
        table = pyarrow.parquet.read_table(path)
        # a new schema, in which every column may hold nulls
        table = pa.table({name: table.column(name) for name in table.column_names})
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as a Parquet file ({error})") from None
    for name in (OFFER_ID, ITEM_ID):
        if name not in table.column_names:
            raise UserError(f"{path}: column {name} is missing")
        id_type = table.schema.field(name).type
        if not (
            pa.types.is_string(id_type) or pa.types.is_large_string(id_type) or pa.types.is_integer(id_type)
        ):
            raise UserError(f"{path}: column {name} holds {id_type}, neither text nor whole numbers")
        if table.column(name).null_count:
            raise UserError(f"{path}: {table.column(name).null_count} rows have no {name}")
    check_ids(table.column(OFFER_ID), OFFER_ID, str(path))
    features = tuple(
        FeatureColumn(name=field.name, kind=_kind(field, path))
        for field in table.schema
        if field.name not in (OFFER_ID, ITEM_ID)
    )
    try:
        rows = item_ids.rows(table.column(ITEM_ID).combine_chunks())
    except pa.ArrowException as error:
        raise UserError(
            f"{path}: column {ITEM_ID}: items of this bundle have ids of type {item_ids.type} ({error})"
        ) from None
    known = np.flatnonzero(rows != UNKNOWN_ROW)
    order = known[np.argsort(rows[known], kind="stable")]
    for field in table.schema:
        if pa.types.is_timestamp(field.type):
            milliseconds = table.column(field.name).cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
            table = table.set_column(table.column_names.index(field.name), field.name, milliseconds)
    return OfferTable(
        table.take(pa.array(order)).combine_chunks(), rows[order], features, table.num_rows - len(order)
    )


def _kind(field: pa.Field, path: Path) -> FeatureKind:
    value_type = field.type
    if pa.types.is_timestamp(value_type):
        return "timestamp"
    if pa.types.is_integer(value_type) or pa.types.is_floating(value_type):
        return "numeric"
    if (pa.types.is_list(value_type) or pa.types.is_large_list(value_type)) and pa.types.is_string(
        value_type.value_type
    ):
        return "multi_categorical"
    if (
        pa.types.is_string(value_type)
        or pa.types.is_large_string(value_type)
        or pa.types.is_boolean(value_type)
        or pa.types.is_dictionary(value_type)
    ):
        return "categorical"
    if pa.types.is_struct(value_type) and {part.name for part in value_type} == {LATITUDE, LONGITUDE}:
        return "place"
    raise UserError(
        f"{path}: column {field.name!r} holds {value_type}: "
        "neither numbers, text, lists of text, timestamps nor places"
    )
