"""`reference.arrow`: the answers that training computed for some users, which the parity
gate compares every layer with.

Candidates are those of the exact retrieval, best first; the best of them are ordered by the ranker.

Shape legend: P reference users, D vector width, C candidates of a user, K the best of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from passerelle.arrays import Float32Array, Int32Array
from passerelle.arrow import read_table, write_table
from passerelle.id_map import Id
from passerelle.ids import TIMESTAMP_MS, USER_ID

REFERENCE = "reference.arrow"
TOP_K = 10
"""Ranked items that are compared, of each reference user."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of a score, or of a component of a query vector, at which two layers agree."""


class ReferenceUser(NamedTuple):
    """One user's request and its expected answer."""

    user_id: Id
    timestamp_ms: int
    """Time of the request."""
    query_D: Float32Array
    candidate_rows_C: Int32Array
    candidate_scores_C: Float32Array
    top_rows_K: Int32Array
    top_scores_K: Float32Array


_QUERY = "query"
_LISTS = {
    _QUERY: pa.float32(),
    "candidate_rows": pa.int32(),
    "candidate_scores": pa.float32(),
    "top_rows": pa.int32(),
    "top_scores": pa.float32(),
}


def _schema(id_type: pa.DataType) -> pa.Schema:
    """Columns in the order of the fields of `ReferenceUser`."""
    lists = [(name, pa.list_(value_type)) for name, value_type in _LISTS.items()]
    return pa.schema([(USER_ID, id_type), (TIMESTAMP_MS, pa.int64()), *lists])


@dataclass(frozen=True)
class Reference:
    """An open `reference.arrow`."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def user_ids(self) -> list[Id]:
        """Returns the id of each reference user."""
        return list(self.table.column(USER_ID).to_pylist())

    def queries(self) -> Float32Array:
        """Returns the query vectors, float32 [P, D]."""
        flat = self.table.column(_QUERY).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat, dtype=np.float32).reshape(len(self), -1)

    def users(self) -> list[ReferenceUser]:
        """Returns the requests with their expected answers."""
        timestamps_ms = self.table.column(TIMESTAMP_MS).to_pylist()
        lists = [
            [row.values.to_numpy(zero_copy_only=False) for row in self.table.column(name)] for name in _LISTS
        ]
        return [ReferenceUser(*values) for values in zip(self.user_ids(), timestamps_ms, *lists, strict=True)]


def read_reference(path: Path) -> Reference:
    """Memory-map the reference of the bundle at `path`.

    Raises:
        UserError: the file is missing or is not Arrow.
    """
    return Reference(read_table(path / REFERENCE))


def write_reference(path: Path, users: Sequence[ReferenceUser], id_type: pa.DataType) -> None:
    """Write the reference of the bundle at `path`.

    Args:
        id_type: Arrow type of the user ids.
    """
    schema = _schema(id_type)
    columns = zip(*users, strict=True) if users else ([] for _ in schema)
    arrays = [pa.array(list(values), field.type) for field, values in zip(schema, columns, strict=True)]
    write_table(path / REFERENCE, pa.Table.from_arrays(arrays, schema=schema))
