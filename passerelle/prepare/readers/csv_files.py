"""Text files with one row a line, as text columns."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from passerelle.errors import UserError
from passerelle.prepare.config import TableConfig
from passerelle.prepare.readers.quotes import checked_quotes
from passerelle.prepare.readers.streams import BLOCK_BYTES, OnBadLine, Pieces, check_columns

WRONG_NUMBER = "a wrong number of values"
_SEPARATOR = "\x1f"
"""ASCII unit separator: stands for a separator of several characters while pyarrow reads."""
_HEADER_BYTES = 1 << 20
_FIRST_LINE = {
    quoting: re.compile(rb"(%s*+)(\r\n|\n|\r|)(.*)" % value, re.DOTALL)
    for quoting, value in ((True, rb'(?:[^"\r\n]|"[^"]*+")'), (False, rb"[^\r\n]"))
}


def csv_batches(
    path: Path,
    stream: io.BufferedReader,
    config: TableConfig,
    required: list[str],
    optional: list[str],
    on_bad_line: OnBadLine,
) -> Iterator[pa.RecordBatch]:
    """Yield batches of the columns that are wanted and there, as text.

    Raises:
        UserError: a required column is missing, or the text holds the control character that is kept.
    """
    separator = config.separator
    if len(separator.encode()) > 1 or config.encoding not in ("utf-8", "ascii"):
        separator = _SEPARATOR if len(separator.encode()) > 1 else separator
        stream = io.BufferedReader(Pieces(_recoded(path, stream, config, separator)), BLOCK_BYTES)
    if stream.peek(3)[:3] == codecs.BOM_UTF8:
        stream.read(3)
    names = list(config.columns or ())
    if config.columns is None:
        names, stream = _header(stream, separator, quoting=config.quoting)
    check_columns(path, names, required)
    wanted = required + [name for name in optional if name in names]

    def report(what: str, line: str) -> None:
        on_bad_line(what, line.replace(_SEPARATOR, config.separator))

    def skip(line: Any) -> str:
        report(
            WRONG_NUMBER,
            f"{line.text!r} has {line.actual_columns} values, not {line.expected_columns}",
        )
        return "skip"

    rows: Any = stream
    if config.quoting:
        rows = io.BufferedReader(
            Pieces(checked_quotes(stream, separator.encode(), len(names), report)), BLOCK_BYTES
        )
    if not rows.peek(1):
        return  # no rows: pyarrow would call it an error
    with pyarrow.csv.open_csv(
        rows,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, column_names=names),
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


def _header(
    stream: io.BufferedReader, separator: str, *, quoting: bool
) -> tuple[list[str], io.BufferedReader]:
    """Returns the names in the first line, and the rest of the stream."""
    start = stream.readline(_HEADER_BYTES)
    while quoting and start.count(b'"') % 2 and (more := stream.readline(_HEADER_BYTES)):
        start += more
    # Lines may end with a carriage return alone, so that all of them have been read as one.
    line, _, rest = _FIRST_LINE[quoting].fullmatch(start).groups()  # type: ignore[union-attr]
    if rest:
        blocks = iter(lambda: stream.read(BLOCK_BYTES), b"")
        stream = io.BufferedReader(Pieces(itertools.chain([rest], blocks)), BLOCK_BYTES)
    text = line.decode()
    names = next(csv.reader([text], delimiter=separator), []) if quoting else text.split(separator)
    return (names if text else []), stream


def _recoded(path: Path, stream: io.BufferedReader, config: TableConfig, separator: str) -> Iterator[bytes]:
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
