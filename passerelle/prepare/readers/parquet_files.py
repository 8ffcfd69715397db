"""Parquet files, batch by batch."""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from passerelle.prepare.readers.streams import check_columns

_BATCH_ROWS = 1 << 18


def parquet_batches(
    path: Path, raw: io.BufferedReader, stream: io.BufferedReader, required: list[str], optional: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield batches of the columns that are wanted and there.

    Raises:
        UserError: a required column is missing.
    """
    # Columns lie anywhere in the file: a compressed one is unpacked as a whole.
    seekable = raw if stream is raw else pa.BufferReader(stream.read())
    # Times of 96 bits reach beyond what nanoseconds of 64 bits hold.
    file = pyarrow.parquet.ParquetFile(seekable, coerce_int96_timestamp_unit="us")
    there = file.schema_arrow.names
    check_columns(path, there, required)
    wanted = required + [name for name in optional if name in there]
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
        yield batch.select(wanted)
