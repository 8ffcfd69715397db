"""Files with one JSON object a line.

pyarrow reads a block with the types that the first lines suggest.
Where a value of the block has another type, the block is read line by line instead.
A column of the block is then text if its values have several types, with numbers as they are written.
What a value means is decided later, by the kind of its feature, `null_values` and `on_bad_rows`.
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from passerelle.errors import UserError
from passerelle.prepare.readers.streams import OnBadLine, check_columns, whole_lines

_SNIFFED_BYTES = 1 << 18
_INT64 = range(-(2**63), 2**63)


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def json_batches(
    path: Path, stream: io.BufferedReader, required: list[str], optional: list[str], on_bad_line: OnBadLine
) -> Iterator[pa.RecordBatch]:
    """Yield batches of the columns that are wanted and there.

    Raises:
        UserError: no line has a required column, or a wanted value is an object or a list of lists.
    """
    types: dict[str, pa.DataType] = {}
    there: dict[str, None] = {}
    lines_before = 0
    for block in whole_lines(stream):
        first_line, lines_before = lines_before + 1, lines_before + block.count(b"\n")
        if not block.strip():
            continue
        if not types:
            objects = _objects(block[:_SNIFFED_BYTES], lambda *_: None)
            there = {name: None for values in objects for name in values}
            types = _types(path, objects, [*required, *optional])
        batch = _read_block(block, types)
        if batch is None:
            objects = _objects(block, on_bad_line, first_line)
            there |= {name: None for values in objects for name in values}
            columns = {name: _column(path, name, objects) for name in (*required, *optional)}
            batch = pa.RecordBatch.from_pydict(columns)
            types = {name: _wider(types[name], values.type) for name, values in columns.items()}
        there |= {name: None for name in types if batch.column(name).null_count < batch.num_rows}
        yield batch.select([*required, *(name for name in optional if name in there)])
    # Where no line is an object, that is what is reported.
    if there:
        check_columns(path, list(there), required)


def _read_block(block: bytes, types: dict[str, pa.DataType]) -> pa.RecordBatch | None:
    """Returns the columns of whole lines; None where a value has another type, or a line is no object."""
    # Types are given: pyarrow would read an id that looks like a date as one.
    parse = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
    )
    read = pyarrow.json.ReadOptions(block_size=len(block) + 1)
    try:
        table = pyarrow.json.read_json(pa.BufferReader(block), read_options=read, parse_options=parse)
    except pa.ArrowInvalid:
        return None
    table = table.select(list(types)).combine_chunks()
    return table.to_batches()[0] if table.num_rows else None


def _objects(block: bytes, on_bad_line: OnBadLine, first_line: int = 1) -> list[dict[str, Any]]:
    """Returns the objects of some lines, with numbers as they are written."""
    objects = []
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if not line.strip():
            continue
        text = f"line {number}: {line[:200].decode(errors='replace').strip()!r}"
        try:
            values = json.loads(line, parse_int=_Number, parse_float=_Number)
        except ValueError as error:
            on_bad_line("a line that is not JSON", f"{text} ({error})")
            continue
        if isinstance(values, dict):
            objects.append(values)
        else:
            on_bad_line("a line that is not a JSON object", text)
    return objects


def _types(path: Path, objects: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, pa.DataType]:
    """Returns the types of columns; one without a value is text."""
    types = {name: _column(path, name, objects).type for name in names}
    return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}


def _wider(before: pa.DataType, now: pa.DataType) -> pa.DataType:
    """Returns the type to try with the next block."""
    return before if pa.types.is_null(now) or now == pa.int64() else now


def _column(path: Path, name: str, objects: Sequence[dict[str, Any]]) -> pa.Array:
    values = [each.get(name) for each in objects]
    if any(isinstance(value, list) for value in values):
        lists = [value if isinstance(value, list) or value is None else [value] for value in values]
        flat = _scalars(path, name, [value for each in lists if each is not None for value in each])
        lengths = [None if each is None else len(each) for each in lists]
        return _lists(lengths, flat)
    return _scalars(path, name, values)


def _lists(lengths: Sequence[int | None], flat: pa.Array) -> pa.Array:
    offsets: list[int] = [0]
    for length in lengths:
        offsets.append(offsets[-1] + (length or 0))
    is_missing = pa.array([length is None for length in lengths])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=is_missing)


def _scalars(path: Path, name: str, values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds & {dict, list}:
        raise UserError(
            f"{path}: column {name!r} holds {'objects' if dict in kinds else 'lists of lists'}: "
            "give its values columns of their own"
        )
    if kinds <= {bool}:
        return pa.array(values, pa.bool_() if kinds else pa.null())
    # NaN and infinity are no JSON, but written by Python as numbers that json has no source text of.
    if kinds <= {_Number, float}:
        return _numbers(values)
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _numbers(values: Sequence[Any]) -> pa.Array:
    texts = [value for value in values if value is not None]
    if all(isinstance(text, str) and text.lstrip("-").isdigit() for text in texts):
        integers = [None if value is None else int(value) for value in values]
        if all(value is None or value in _INT64 for value in integers):
            return pa.array(integers, pa.int64())
        return pa.array(values, pa.string())
    return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
