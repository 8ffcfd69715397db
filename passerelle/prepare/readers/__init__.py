"""Read csv, parquet and jsonl files, compressed or not, batch by batch: only the columns asked for.

Rows are counted from 1, header lines and bad lines left out.
Every column of a batch has one of the types of `passerelle.column_types`, whatever its file holds.
"""

import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from passerelle.column_types import normalize
from passerelle.column_values import read_missing
from passerelle.errors import UserError
from passerelle.prepare.config import TableConfig
from passerelle.prepare.readers.csv_files import WRONG_NUMBER, csv_batches
from passerelle.prepare.readers.json_lines import json_batches
from passerelle.prepare.readers.parquet_files import parquet_batches
from passerelle.prepare.readers.streams import OnBadLine, OnBytes, unpacked

__all__ = ["WRONG_NUMBER", "OnBadLine", "read_batches"]

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


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

    A column that the file lacks is taken from its folders, where Spark has written `column=value`.
    A file without a byte has no rows.

    Args:
        on_bad_line: called with what is wrong and the line, for each line that is no row; it is left out.
        on_bytes: called with the position in the file, in bytes on disk.

    Raises:
        UserError: naming the file: missing, truncated, not of this format, a required
            column is not there (and which are).
    """
    folders = _values_of_folders(path)
    required, optional = list(dict.fromkeys(required)), list(dict.fromkeys(optional))
    optional = [name for name in optional if name not in required]
    optional += [name for name in required if name in folders]
    required = [name for name in required if name not in folders]
    with _readable(path, config), path.open("rb") as raw:
        stream = unpacked(path, raw, config)
        if not stream.peek(1):
            return
        if config.format == "csv":
            batches = csv_batches(path, stream, config, required, optional, on_bad_line)
        elif config.format == "parquet":
            batches = parquet_batches(path, raw, stream, required, optional)
        else:
            batches = json_batches(path, stream, required, optional, on_bad_line)
        for batch in batches:
            there = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns = {
                name: pa.repeat(pa.scalar(folders[name], pa.string()), batch.num_rows)
                for name in optional
                if name in folders and name not in there
            }
            for name, values in there.items():
                columns[name] = normalize(values)
            kept = [read_missing(values, config.null_values) for values in columns.values()]
            yield pa.RecordBatch.from_arrays(kept, names=list(columns))
            if on_bytes is not None:
                on_bytes(raw.tell())


def _values_of_folders(path: Path) -> dict[str, str | None]:
    """Returns the columns that Spark keeps in the names of folders, such as `day=2024-05-01`."""
    pairs = [part.split("=", 1) for part in path.parts[:-1] if "=" in part]
    return {unquote(name): None if value == _HIVE_NULL else unquote(value) for name, value in pairs}


@contextmanager
def _readable(path: Path, config: TableConfig) -> Iterator[None]:
    """Turn what goes wrong in reading into one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: truncated or damaged compressed file ({error}): fetch it again") from None
    except UnicodeError as error:
        raise UserError(
            f'{path}: not {config.encoding} text ({error}): set encoding, such as "latin-1"'
        ) from None
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        hint = f': not {config.encoding} text, set encoding, such as "latin-1"' if "UTF8" in message else ""
        raise UserError(f"{path}: cannot be read as {config.format} ({message[:300]}){hint}") from None
