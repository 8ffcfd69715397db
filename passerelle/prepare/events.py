"""Event files as parallel arrays in file order, with the rows that cannot be used counted.

Shape legend: N rows of a batch, E events kept so far.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import BoolArray, Float32Array, Int32Array, Int64Array, UInt8Array
from passerelle.column_values import as_text, parse_int64, parse_numbers, to_numpy_bool
from passerelle.errors import UserError
from passerelle.event_types import event_type_codes
from passerelle.ids import ITEM_ID, TIMESTAMP_MS, USER_ID
from passerelle.prepare.config import ID_TYPES, Condition, EventsConfig, IdType, PrepareConfig
from passerelle.prepare.readers import WRONG_NUMBER, read_batches
from passerelle.prepare.row_counts import RowCounts, first_example
from passerelle.prepare.sources import resolve_files
from passerelle.prepare.timestamps import parse_timestamps_ms
from passerelle.progress import Progress

R = TypeVar("R")

_ROW, _NUMBER, _USER, _ITEM = "__row__", "__number__", "__user__", "__item__"
_COMPARE = {
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
}


@dataclass(frozen=True)
class Encoded:
    """A column as indices into its distinct values; -1 where the value is missing."""

    codes_E: Int32Array
    values: pa.Array


@dataclass(frozen=True)
class EventLog:
    """Events in file order."""

    users: Encoded
    """Distinct ids in ascending order, so that codes are in the ids' order."""
    items: Encoded
    timestamps_ms_E: Int64Array
    event_types_E: UInt8Array
    weights_E: Float32Array
    columns: dict[str, Encoded]
    """Columns of features, as text, with values in the order of their first event."""


@dataclass
class _Chunks:
    user_ids: list[pa.Array] = field(default_factory=list)
    item_ids: list[pa.Array] = field(default_factory=list)
    timestamps_ms: list[Int64Array] = field(default_factory=list)
    event_types: list[UInt8Array] = field(default_factory=list)
    weights: list[Float32Array] = field(default_factory=list)
    columns: dict[str, list[pa.Array]] = field(default_factory=dict)


def read_events(config: PrepareConfig, source: Path, row_counts: RowCounts, progress: Progress) -> EventLog:
    """Read every event file of a configuration.

    Raises:
        UserError: a file is missing, damaged or lacks a column; or bad rows stop the work (see
            `RowCounts.stop_if_bad`).
    """
    of_entities = (*config.items.features.values(), *config.users.features.values())
    features = [
        *(feature for feature in of_entities if feature.from_events),
        *config.context.features.values(),
    ]
    optional = list(dict.fromkeys(name for feature in features for name in feature.columns()))
    work = [(path, block) for block in config.events for path in resolve_files(source, block.files)]
    total_kb = max(1, sum(path.stat().st_size for path, _ in work) // 1000)
    chunks = _Chunks(columns={name: [] for name in optional})
    seen: set[str] = set()
    before_kb = 0
    for path, block in work:

        def show(position: int, before_kb: int = before_kb) -> None:
            progress("read events (kB)", min(total_kb, before_kb + position // 1000), total_kb)

        def bad_line(what: str, example: str, path: Path = path) -> None:
            row_counts.rows_read += 1
            row_counts.drop("wrong_number_of_values" if what == WRONG_NUMBER else "unreadable_line", 1)
            row_counts.bad(path, what, 1, example)

        required = [block.user_id, block.item_id, block.timestamp, *(each.column for each in block.where)]
        required += [block.event_type_column] if block.event_type_column else []
        rows_before = 0
        for batch in read_batches(path, block, required, optional, on_bad_line=bad_line, on_bytes=show):
            seen.update(batch.schema.names)
            rows = _Rows(path, batch, rows_before, row_counts)
            rows_before += batch.num_rows
            row_counts.rows_read += batch.num_rows
            _convert(rows, block, config, optional, chunks)
        before_kb += path.stat().st_size // 1000
    row_counts.stop_if_bad()
    absent = [name for name in optional if name not in seen]
    if absent and seen:
        raise UserError(
            f"{source}: features come from the event files' column {absent[0]!r}, but none of them has it"
        )
    return _log(chunks, config)


class _Rows:
    """The remaining rows of a batch, with each row's number in its file."""

    def __init__(self, path: Path, batch: pa.RecordBatch, rows_before: int, row_counts: RowCounts) -> None:
        self.path = path
        self.row_counts = row_counts
        numbers = pa.array(np.arange(rows_before + 1, rows_before + batch.num_rows + 1))
        self.batch = pa.RecordBatch.from_arrays([*batch.columns, numbers], names=[*batch.schema.names, _ROW])

    def column(self, name: str) -> pa.Array:
        return self.batch.column(name)

    def set(self, name: str, values: pa.Array) -> None:
        """Add a column, or replace it."""
        columns = dict(zip(self.batch.schema.names, self.batch.columns, strict=True)) | {name: values}
        self.batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    def keep(self, reason: str, keep_N: BoolArray) -> None:
        """Drop the other rows and count them."""
        self.row_counts.drop(reason, int(len(keep_N) - keep_N.sum()))
        if not keep_N.all():
            self.batch = self.batch.filter(pa.array(keep_N))

    def keep_good(self, reason: str, what: str, values: pa.Array, bad_N: BoolArray) -> None:
        """Drop rows whose value cannot be parsed, and note the first."""
        if bad_N.any():
            example = first_example(bad_N, self.column(_ROW).to_numpy(), values)
            self.row_counts.bad(self.path, what, int(bad_N.sum()), example)
        self.keep(reason, ~bad_N)


def _convert(
    rows: _Rows, block: EventsConfig, config: PrepareConfig, optional: list[str], chunks: _Chunks
) -> None:
    for condition in block.where:
        _apply(rows, condition)
    for name, column in ((USER_ID, block.user_id), (ITEM_ID, block.item_id), ("timestamp", block.timestamp)):
        rows.keep(f"missing_{name}", _present(rows.column(column)))
    _convert_ids(rows, USER_ID, block.user_id, config.user_id_type, _USER)
    _convert_ids(rows, ITEM_ID, block.item_id, config.item_id_type, _ITEM)
    values = rows.column(block.timestamp)
    ms_N, bad_N = _named(
        rows.path,
        block.timestamp,
        lambda: parse_timestamps_ms(values, block.timestamp_unit, block.timestamp_format),
    )
    expected = block.timestamp_format or block.timestamp_unit
    what = f"unparsable timestamps (column {block.timestamp!r}, read as {expected})"
    rows.set(TIMESTAMP_MS, pa.array(ms_N))
    rows.keep_good("unparsable_timestamp", what, values, bad_N)
    types_N, weights_N = _event_types(rows, block, config)
    chunks.user_ids.append(rows.column(_USER).dictionary_encode())
    chunks.item_ids.append(rows.column(_ITEM).dictionary_encode())
    chunks.timestamps_ms.append(rows.column(TIMESTAMP_MS).to_numpy())
    chunks.event_types.append(types_N)
    chunks.weights.append(weights_N)
    for name in optional:
        there = name in rows.batch.schema.names
        texts = (
            _text(rows.path, name, rows.column(name)) if there else pa.nulls(rows.batch.num_rows, pa.string())
        )
        chunks.columns[name].append(texts.dictionary_encode())


def _apply(rows: _Rows, condition: Condition) -> None:
    values, value = rows.column(condition.column), condition.value
    reason = f"where {condition}"
    if condition.operator in ("is_null", "not_null"):
        rows.keep(reason, _present(values) == (condition.operator == "not_null"))
    elif isinstance(value, float):
        numbers_N, bad_N = _named(rows.path, condition.column, lambda: parse_numbers(values))
        rows.set(_NUMBER, pa.array(numbers_N))
        rows.keep_good(
            f"unparsable_{condition.column}", f"no number in column {condition.column!r}", values, bad_N
        )
        numbers = rows.column(_NUMBER)
        keep = pc.and_(_COMPARE[condition.operator](numbers, value), pc.invert(pc.is_nan(numbers)))
        rows.keep(reason, to_numpy_bool(keep))
    else:
        texts = _text(rows.path, condition.column, values)
        if isinstance(value, tuple):
            keep = pc.is_in(texts, value_set=pa.array(value, pa.string()))
        elif condition.operator in ("matches", "not_matches"):
            found = pc.match_substring_regex(texts, value)
            keep = found if condition.operator == "matches" else pc.invert(found)
        else:
            keep = _COMPARE[condition.operator](texts, value)
        rows.keep(reason, to_numpy_bool(keep))


def _convert_ids(rows: _Rows, name: str, column: str, id_type: IdType, target: str) -> None:
    values = rows.column(column)
    if id_type == "string":
        rows.set(target, _text(rows.path, column, values))
        return
    integers_N, bad_N = _named(rows.path, column, lambda: parse_int64(values))
    what = f'{name} that is no integer of 64 bits (column {column!r}; {name}_type = "string" takes any text)'
    rows.set(target, pa.array(integers_N))
    rows.keep_good(f"unparsable_{name}", what, values, bad_N)


def _event_types(rows: _Rows, block: EventsConfig, config: PrepareConfig) -> tuple[UInt8Array, Float32Array]:
    names = block.weights()
    codes = event_type_codes(names, config.event_types(), "event_types").astype(np.uint8)
    weights = np.array(list(names.values()), dtype=np.float32)
    if block.event_type_column is None:
        return np.full(rows.batch.num_rows, codes[0]), np.full(rows.batch.num_rows, weights[0])
    texts = _text(rows.path, block.event_type_column, rows.column(block.event_type_column))
    positions = pc.index_in(texts, value_set=pa.array(list(names), pa.string()))
    rows.keep("event_type_not_listed", positions.is_valid().to_numpy(zero_copy_only=False))
    positions_N = positions.drop_null().to_numpy()
    return codes[positions_N], weights[positions_N]


def _present(values: pa.Array) -> BoolArray:
    present = values.is_valid()
    if pa.types.is_floating(values.type):
        present = pc.and_(present, pc.fill_null(pc.invert(pc.is_nan(values)), False))
    return to_numpy_bool(present)


def _text(path: Path, column: str, values: pa.Array) -> pa.Array:
    return _named(path, column, lambda: as_text(values, trim=False))


def _named(path: Path, column: str, parse: Callable[[], R]) -> R:
    try:
        return parse()
    except UserError as error:
        raise UserError(f"{path}: column {column!r} {error}") from None


def _log(chunks: _Chunks, config: PrepareConfig) -> EventLog:
    return EventLog(
        users=_in_order(_encoded(chunks.user_ids, ID_TYPES[config.user_id_type])),
        items=_in_order(_encoded(chunks.item_ids, ID_TYPES[config.item_id_type])),
        timestamps_ms_E=np.concatenate([np.empty(0, np.int64), *chunks.timestamps_ms]),
        event_types_E=np.concatenate([np.empty(0, np.uint8), *chunks.event_types]),
        weights_E=np.concatenate([np.empty(0, np.float32), *chunks.weights]),
        columns={name: _encoded(arrays, pa.string()) for name, arrays in chunks.columns.items()},
    )


def _encoded(arrays: list[pa.Array], value_type: pa.DataType) -> Encoded:
    """Returns dictionary-encoded chunks under one dictionary."""
    whole = pa.chunked_array(arrays, pa.dictionary(pa.int32(), value_type)).unify_dictionaries()
    codes = [pc.fill_null(chunk.indices, -1).to_numpy() for chunk in whole.chunks]
    values = whole.chunk(0).dictionary if whole.num_chunks else pa.array([], value_type)
    return Encoded(np.concatenate([np.empty(0, np.int32), *codes]), values)


def _in_order(encoded: Encoded) -> Encoded:
    """Returns the same column with its distinct values sorted."""
    order = pc.sort_indices(encoded.values).to_numpy()
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return Encoded(rank[encoded.codes_E], encoded.values.take(pa.array(order)))
