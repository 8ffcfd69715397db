"""A split that the user gives as a file: how many of the newest events of each user are test, and how many
before them validation.

    user_id,validation_events,test_events
    17,2,1
    42,0,3

Comma-separated, Parquet or Arrow.
Counts say what instants cannot: events of one instant may stand on both sides.
A user who is not in the file has no part in evaluation: all events are for training.

Shape legend: U users, N lines of the file.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from passerelle.arrays import Int64Array
from passerelle.arrow import read_table
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW

COUNTS = ("validation_events", "test_events")
COLUMNS = ("user_id", *COUNTS)


def held_out_counts(path: Path, dataset: Dataset) -> tuple[Int64Array, Int64Array]:
    """Returns the numbers of validation and test events of each user, int64 [U] each.

    Raises:
        UserError: the file cannot be read, lacks a column, names a user twice or one that the dataset does
            not have, or holds out a negative number of events or more than the user has.
    """
    table = _read(path, dataset.user_ids().type)
    if absent := [name for name in COLUMNS if name not in table.column_names]:
        raise UserError(
            f"{path}: no column {', '.join(absent)}; a split has the columns {', '.join(COLUMNS)}"
        )
    if nulls := [name for name in COLUMNS if table[name].null_count]:
        raise UserError(f"{path}: column {nulls[0]} has empty values")
    ids = table["user_id"]
    rows_N = _rows(path, ids, dataset)
    _, first_N, times_N = np.unique(rows_N, return_index=True, return_counts=True)
    if (times_N > 1).any():
        raise UserError(
            f"{path}: user {ids[int(first_N[times_N.argmax()])].as_py()!r} has {times_N.max()} lines; each "
            "user has one at most"
        )
    validation_N, test_N = (_counts(path, name, table[name]) for name in COUNTS)
    events_N = np.diff(dataset.offsets_U1)[rows_N]
    too_many_N = validation_N + test_N > events_N
    if too_many_N.any():
        line = int(too_many_N.argmax())
        raise UserError(
            f"{path}: user {ids[line].as_py()!r} has {events_N[line]} events, fewer than the "
            f"{validation_N[line]} + {test_N[line]} held out"
        )
    validation_U, test_U = (np.zeros(dataset.num_users, dtype=np.int64) for _ in COUNTS)
    validation_U[rows_N], test_U[rows_N] = validation_N, test_N
    return validation_U, test_U


def _read(path: Path, id_type: pa.DataType) -> pa.Table:
    """Returns the table, with ids of a text file in the dataset's own type."""
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        if path.suffix == ".arrow":
            return read_table(path)
        types = {"user_id": id_type, **{name: pa.int64() for name in COUNTS}}
        return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"split.file = {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None


def _rows(path: Path, ids: pa.ChunkedArray, dataset: Dataset) -> Int64Array:
    if not ids.type.equals(dataset.user_ids().type):
        raise UserError(f"{path}: user_id is {ids.type}, in the dataset it is {dataset.user_ids().type}")
    rows_N = dataset.user_ids().rows(ids)
    unknown_N = rows_N == UNKNOWN_ROW
    if unknown_N.any():
        unknown = ids[int(unknown_N.argmax())].as_py()
        raise UserError(
            f"{path}: {unknown_N.sum()} of {len(rows_N)} users are not in the dataset, the first is "
            f"{unknown!r}"
        )
    return rows_N


def _counts(path: Path, name: str, values: pa.ChunkedArray) -> Int64Array:
    if not pa.types.is_integer(values.type):
        raise UserError(f"{path}: {name} is {values.type}, not a whole number")
    counts_N: Int64Array = np.asarray(pc.cast(values, pa.int64()).to_numpy(), dtype=np.int64)
    if (counts_N < 0).any():
        raise UserError(f"{path}: {name} is {counts_N.min()} in line {int(counts_N.argmin()) + 1}, below 0")
    return counts_N
