"""Prepare tables that are in memory: Arrow tables, or data frames that export themselves to Arrow."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet

from passerelle.column_types import is_list, is_text, normalize
from passerelle.config import validate
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import ITEM_ID, USER_ID
from passerelle.prepare.config import PrepareConfig
from passerelle.prepare.pipeline import prepare
from passerelle.progress import Progress, silent

TIMESTAMP = "timestamp"
TITLE = "title"


class ArrowTable(Protocol):
    """An Arrow table, or a data frame of pandas (2.2 or later) or Polars."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export as an Arrow stream (the PyCapsule interface)."""


def prepare_table(
    events: ArrowTable,
    out: Path | str,
    *,
    items: ArrowTable | None = None,
    users: ArrowTable | None = None,
    description: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Dataset:
    """Make a dataset of tables in memory, as `prepare` makes one of files.

    Args:
        events: one row per event, by default with the columns `user_id`, `item_id` and `timestamp`.
            Timestamps are dates, or seconds since 1970 where `timestamp_unit` does not say otherwise.
        items: one row per item, with the column `item_id`.
            Without a description of features, every other column becomes one, by its type.
        users: one row per user, with the column `user_id`; features as for items.
        description: the keys of a TOML description of logs, without `files` and `format`.
            `events` is one table of keys here.
        overwrite: replace a dataset at `out`.

    Raises:
        UserError: the description is wrong, a column is missing, or what `prepare` raises.
    """
    given = {"events": events, "items": items, "users": users}
    tables = {name: _as_arrow(table) for name, table in given.items() if table is not None}
    config = _config(tables, dict(description or {}))
    with tempfile.TemporaryDirectory(prefix="passerelle-tables-") as folder:
        for name, table in tables.items():
            pyarrow.parquet.write_table(table, Path(folder) / _file(name))
        return prepare(config, Path(folder), Path(out), overwrite=overwrite, progress=progress)


def _as_arrow(table: ArrowTable) -> pa.Table:
    """The table with columns of the types that files are read as, whichever layout a library exports."""
    arrow = pa.table(table)
    columns = [normalize(column.combine_chunks()) for column in arrow.columns]
    return pa.table(columns, names=arrow.column_names)


def _file(name: str) -> str:
    return f"{name}.parquet"


def _config(tables: Mapping[str, pa.Table], given: dict[str, Any]) -> PrepareConfig:
    """The description with its files, columns and types filled in from the tables."""
    events = {"user_id": USER_ID, "item_id": ITEM_ID, "timestamp": TIMESTAMP, **given.pop("events", {})}
    types = {name: _column(tables["events"], events[name], "events").type for name in (USER_ID, ITEM_ID)}
    if pa.types.is_temporal(_column(tables["events"], events["timestamp"], "events").type):
        events.setdefault("timestamp_unit", "iso")
    values: dict[str, Any] = {
        "name": "table",
        "user_id_type": _id_type(types[USER_ID]),
        "item_id_type": _id_type(types[ITEM_ID]),
        **given,
        "events": [{**events, "files": [_file("events")], "format": "parquet"}],
    }
    for name, id_name in (("items", ITEM_ID), ("users", USER_ID)):
        if name in tables:
            entity = {"id": id_name, **given.get(name, {})}
            entity.setdefault("features", _features(tables[name], entity["id"]))
            values[name] = {**entity, "files": [_file(name)], "format": "parquet"}
    if TITLE in values.get("items", {}).get("features", {}):
        values.setdefault("title", TITLE)
    return validate(PrepareConfig, values, "description", given=True)


def _column(table: pa.Table, column: str, where: str) -> pa.ChunkedArray:
    if column not in table.column_names:
        raise UserError(f"{where}: no column {column!r}; there are: {', '.join(table.column_names)}")
    return table.column(column)


def _id_type(column_type: pa.DataType) -> str:
    return "int64" if pa.types.is_integer(column_type) else "string"


def _features(table: pa.Table, id_column: str) -> dict[str, dict[str, str]]:
    """A feature for every column but the id; columns of a type that makes none are left out."""
    kinds = {field.name: _kind(field) for field in table.schema if field.name != id_column}
    features = {name: {"column": name, "kind": kind} for name, kind in kinds.items() if kind is not None}
    for feature in features.values():
        if feature["kind"] == "timestamp":
            feature["timestamp_unit"] = "iso"
    return features


def _kind(field: pa.Field) -> str | None:
    if is_text(field.type):
        return "text" if field.name == TITLE else "categorical"
    if is_list(field.type):
        return "multi_categorical" if is_text(field.type.value_type) else None
    if pa.types.is_date(field.type) or pa.types.is_timestamp(field.type):
        return "timestamp"
    numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    return "numeric" if numeric or pa.types.is_boolean(field.type) else None
