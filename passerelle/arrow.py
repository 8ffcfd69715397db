"""Arrow files of one record batch, so that a memory-mapped column is one contiguous array."""

from bisect import bisect_left
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import Int64Array
from passerelle.errors import UserError

S = TypeVar("S", bound=np.generic)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as an Arrow IPC file of one record batch, uncompressed."""
    table = table.combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, table.num_rows))


def read_table(path: Path) -> pa.Table:
    """Memory-map a table written by `write_table`.

    Raises:
        UserError: the file is missing or is not Arrow.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as an Arrow file ({error})") from None


def sorted_position(ordered: pa.Array, value: Any) -> int:
    """Returns the index of one value among distinct sorted ones, -1 where it is not among them; O(log n).

    >>> ordered = pa.array(["a", "c"])
    >>> sorted_position(ordered, "c"), sorted_position(ordered, "b")
    (1, -1)
    """
    position = bisect_left(range(len(ordered)), value, key=lambda index: ordered[index].as_py())
    return position if position < len(ordered) and ordered[position].as_py() == value else -1


def sorted_positions(ordered: pa.Array, wanted: pa.Array) -> Int64Array:
    """Returns the index of each of some values among distinct sorted ones, -1 where it is not among them.

    Texts are searched together, in one binary search.

    Args:
        ordered: texts or numbers, without nulls.
        wanted: values of the same type; a null has no index.
    """
    if not len(ordered) or not len(wanted):
        return np.full(len(wanted), -1, dtype=np.int64)
    if pa.types.is_string(ordered.type) or pa.types.is_large_string(ordered.type):
        filled = pc.fill_null(wanted, "")
        low, high = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), len(ordered) - 1)
        for _ in range(len(ordered).bit_length()):
            middle = (low + high) // 2
            is_after = pc.less(ordered.take(pa.array(middle)), filled).to_numpy(zero_copy_only=False)
            low, high = (
                np.where(is_after, np.minimum(middle + 1, high), low),
                np.where(is_after, high, middle),
            )
    else:
        low = np.minimum(
            np.searchsorted(ordered.to_numpy(), pc.fill_null(wanted, 0).to_numpy()), len(ordered) - 1
        )
    is_equal = pc.fill_null(pc.equal(ordered.take(pa.array(low)), wanted), False).to_numpy(
        zero_copy_only=False
    )
    return np.where(is_equal, low, -1)


def column(table: pa.Table, name: str, dtype: type[S]) -> npt.NDArray[S]:
    """Returns a numeric column without nulls as a read-only view of the mapped file."""
    assert table.schema.field(name).type == pa.from_numpy_dtype(dtype), (
        f"{name}: {table.schema.field(name).type}, not {dtype}"
    )
    chunks = table.column(name).chunks
    assert len(chunks) <= 1, f"{name}: written in {len(chunks)} chunks"
    return (
        np.asarray(chunks[0].to_numpy(zero_copy_only=True), dtype=dtype)
        if chunks
        else np.empty(0, dtype=dtype)
    )
