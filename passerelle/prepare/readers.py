"""Read csv, parquet and jsonl files, plain or gzipped, batch by batch: only the columns asked for, csv as
text.

Rows are counted from 1, header lines and lines without the right number of values left out.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from passerelle.errors import UserError
from passerelle.prepare.config import TableConfig
from passerelle.prepare.values import empty_to_null

BLOCK_BYTES = 16 << 20
_BATCH_ROWS = 1 << 18
_SNIFFED_LINES = 1000
_SEPARATOR = "\x1f"
"""ASCII unit separator: stands for a separator of several characters while pyarrow reads."""

OnBadLine = Callable[[str], None]
OnBytes = Callable[[int], None]


def read_batches(
    path: Path,
    config: TableConfig,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    on_bad_line: OnBadLine,
    on_bytes: OnBytes | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of one file: the required columns and those of the optional ones that
    it has; missing values are null.

    Args:
        on_bad_line: called with a reason for each csv line with a wrong number
            of values; the line is left out.
        on_bytes: called with the position in the file, in bytes on disk.

    Raises:
        UserError: naming the file: missing, truncated, not of this format, a required
            column is not there (and which are).
    """
    required, optional = list(dict.fromkeys(required)), list(dict.fromkeys(optional))
    with _readable(path, config), path.open("rb") as raw:
        if config.format == "csv":
            batches = _csv_batches(path, raw, config, required, optional, on_bad_line)
        elif config.format == "parquet":
            batches = _parquet_batches(path, raw, required, optional)
        else:
            batches = _json_batches(path, raw, required, optional)
        for batch in batches:
            columns = [empty_to_null(column, config.null_values) for column in batch.columns]
            yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
            if on_bytes is not None:
                on_bytes(raw.tell())


@contextmanager
def _readable(path: Path, config: TableConfig) -> Iterator[None]:
    """Turn what goes wrong in reading into one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: truncated or damaged gzip file ({error}): fetch it again") from None
    except UnicodeError as error:
        raise UserError(
            f'{path}: not {config.encoding} text ({error}): set encoding, such as "latin-1"'
        ) from None
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        hint = f': not {config.encoding} text, set encoding, such as "latin-1"' if "UTF8" in message else ""
        raise UserError(f"{path}: cannot be read as {config.format} ({message[:300]}){hint}") from None


def _unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    return gzip.GzipFile(fileobj=raw, mode="rb") if path.suffix == ".gz" else raw  # type: ignore[return-value]


def _check_columns(path: Path, there: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in there]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; there are: {', '.join(there) or 'none'}"
        )
    twice = [name for name in required if list(there).count(name) > 1]
    if twice:
        raise UserError(
            f"{path}: more than one column {', '.join(map(repr, twice))}; name the columns in `columns`"
        )


def _csv_batches(
    path: Path,
    raw: IO[bytes],
    config: TableConfig,
    required: list[str],
    optional: list[str],
    on_bad_line: OnBadLine,
) -> Iterator[pa.RecordBatch]:
    names = list(config.columns) if config.columns is not None else _header(path, config)
    _check_columns(path, names, required)
    wanted = required + [name for name in optional if name in names and name not in required]

    def skip(line: Any) -> str:
        on_bad_line(
            f"{line.text.replace(_SEPARATOR, config.separator)!r} has {line.actual_columns} values, not "
            f"{line.expected_columns}"
        )
        return "skip"

    stream = _unpacked(path, raw)
    if not stream.peek(1):  # type: ignore[attr-defined]
        return  # no rows: pyarrow would call it an error
    separator = config.separator
    if len(separator.encode()) > 1 or config.encoding not in ("utf-8", "ascii"):
        separator = _SEPARATOR if len(separator.encode()) > 1 else separator
        stream = io.BufferedReader(_Pieces(_recoded(path, stream, config, separator)))
    with pyarrow.csv.open_csv(
        stream,
        read_options=pyarrow.csv.ReadOptions(
            block_size=BLOCK_BYTES, column_names=names, skip_rows=int(config.columns is None)
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=separator,
            quote_char='"' if config.quoting else False,
            newlines_in_values=config.quoting,
            invalid_row_handler=skip,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
        ),
    ) as batches:
        yield from batches


def _header(path: Path, config: TableConfig) -> list[str]:
    encoding = "utf-8-sig" if config.encoding == "utf-8" else config.encoding
    with (
        path.open("rb") as raw,
        io.TextIOWrapper(_unpacked(path, raw), encoding=encoding, newline="") as text,
    ):
        if config.quoting:
            return next(csv.reader(text, delimiter=config.separator), [])
        line = text.readline().rstrip("\r\n")
        return line.split(config.separator) if line else []


def _recoded(path: Path, stream: IO[bytes], config: TableConfig, separator: str) -> Iterator[bytes]:
    """Yield the file as UTF-8 with a one-byte separator, in chunks of whole lines."""
    text = io.TextIOWrapper(stream, encoding=config.encoding, newline="")
    try:
        while piece := text.read(BLOCK_BYTES // 4):
            piece += text.readline()
            if separator != config.separator:
                if separator in piece:
                    raise UserError(
                        f"{path}: holds the control character U+001F, which is kept for separators: take it "
                        "out"
                    )
                piece = piece.replace(config.separator, separator)
            yield piece.encode()
    finally:
        text.detach()  # the file is closed by who opened it


class _Pieces(io.RawIOBase):
    """An iterator of byte strings as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _parquet_batches(
    path: Path, raw: IO[bytes], required: list[str], optional: list[str]
) -> Iterator[pa.RecordBatch]:
    seekable = pa.BufferReader(_unpacked(path, raw).read()) if path.suffix == ".gz" else raw
    file = pyarrow.parquet.ParquetFile(seekable)
    there = file.schema_arrow.names
    _check_columns(path, there, required)
    wanted = required + [name for name in optional if name in there and name not in required]
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
        yield batch.select(wanted)


def _json_batches(
    path: Path, raw: IO[bytes], required: list[str], optional: list[str]
) -> Iterator[pa.RecordBatch]:
    types = _json_types(path)
    _check_columns(path, list(types), required)
    wanted = required + [name for name in optional if name in types and name not in required]
    # Types are given: pyarrow would read an id that looks like a date as one.
    parse = pyarrow.json.ParseOptions(
        explicit_schema=pa.schema([(name, types[name]) for name in wanted]),
        unexpected_field_behavior="ignore",
    )
    with pyarrow.json.open_json(
        _unpacked(path, raw),
        read_options=pyarrow.json.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=parse,
    ) as batches:
        for batch in batches:
            yield batch.select(wanted)


def _json_types(path: Path) -> dict[str, pa.DataType]:
    """Returns the columns of a jsonl file with their types, from its first lines; a column
    without a value there is text.
    """
    types: dict[str, pa.DataType] = {}
    with path.open("rb") as raw:
        for number, line in enumerate(islice(_unpacked(path, raw), _SNIFFED_LINES), start=1):
            try:
                values = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise UserError(f"{path}: line {number} is not JSON ({error})") from None
            if not isinstance(values, dict):
                raise UserError(f"{path}: line {number} is not a JSON object")
            for name, value in values.items():
                found = _json_type(value)
                if found is not None and not (types.get(name) == pa.float64() and found == pa.int64()):
                    types[name] = found
                types.setdefault(name, pa.null())
    return {name: pa.string() if found == pa.null() else found for name, found in types.items()}


def _json_type(value: Any) -> pa.DataType | None:
    if isinstance(value, list):
        return pa.list_(pa.string()) if not value or isinstance(value[0], str) else pa.list_(pa.int64())
    by_type = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), dict: pa.struct([])}
    return by_type.get(type(value))
