"""The frozen map between the caller's ids and dense rows."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import Int64Array, IntArray
from passerelle.arrow import sorted_position, sorted_positions
from passerelle.errors import UserError

Id = str | int

UNKNOWN_ROW = -1
# int() also takes 10_01, digits of other scripts and spaces: other spellings of the same id.
_NUMBER = re.compile(r"-?[0-9]{1,1000}")
_SEARCH_COST = 6
"""A search costs as much as hashing so many ids of the map: 4 to 8, for 1 and 5 million strings and numbers.
"""
_MIN_VECTORISED = 30
"""A vectorised search, 0.3 ms, costs as much as searching so many strings one by one; a request often has
fewer.
"""


class IdMap:
    """The map between ids (string or int64) and rows `first_row, first_row + 1, ...`, in both directions.

    No hash table is built: look-ups are binary searches over a sorted copy of the ids, so that a
    memory-mapped map of many millions of ids opens at once.

    Args:
        ids: the id of each row, in row order; unique.
        first_row: row of `ids[0]`.
        name: column name used in messages, `item_id` or `user_id`.

    Raises:
        UserError: ids are neither strings nor int64, or repeat.
    """

    def __init__(self, ids: pa.Array | pa.ChunkedArray, *, first_row: int, name: str) -> None:
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        if not (pa.types.is_string(ids.type) or pa.types.is_int64(ids.type)):
            raise UserError(f"{name}: ids are {ids.type}, only string and int64 are possible")
        self._ids = ids
        self._name = name
        self.first_row = first_row
        order = pc.sort_indices(ids)
        self._sorted = ids.take(order)
        self._sorted_rows = order.to_numpy().astype(np.int64) + first_row
        if len(ids) > 1 and pc.any(pc.equal(self._sorted[1:], self._sorted[:-1])).as_py():
            raise UserError(f"{name}: ids repeat, each row needs its own")

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def type(self) -> pa.DataType:
        """Arrow type of the ids: string or int64."""
        return self._ids.type

    def exceeds(self, limit: int) -> bool:
        """Returns whether an id is a number beyond a limit, on either side of 0."""
        if pa.types.is_string(self.type) or not len(self):
            return False
        return bool(self._sorted[-1].as_py() > limit or self._sorted[0].as_py() < -limit)

    def parse(self, value: Id) -> Id:
        """Returns `value` in the map's own type: `"42"` and `42` are the same id of an int64 map.

        Raises:
            UserError: the map is int64 and the value is not an integer of 64 bits.
        """
        if pa.types.is_string(self.type):
            return str(value)
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            raise UserError(f"{self._name} {value!r}: this catalogue's ids are integers")
        number = int(value)
        if not -(2**63) <= number < 2**63:
            raise UserError(f"{self._name} {value!r}: does not fit in 64 bits")
        return number

    def row(self, value: Id) -> int:
        """Returns the row of one id in O(log n), `UNKNOWN_ROW` when it is not in the map."""
        position = sorted_position(self._sorted, value)
        return UNKNOWN_ROW if position < 0 else int(self._sorted_rows[position])

    def rows(self, ids: pa.Array | pa.ChunkedArray | Sequence[Id]) -> Int64Array:
        """Returns the rows of many ids, `UNKNOWN_ROW` where one is not in the map.

        Few ids are searched; where they are many of the map's, the map is hashed.
        """
        if not isinstance(ids, pa.Array | pa.ChunkedArray):
            ids = pa.array(ids, self.type)
        elif ids.type != self.type:
            ids = ids.cast(self.type)
        if len(ids) * _SEARCH_COST < len(self):
            ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
            if pa.types.is_string(self.type) and len(ids) < _MIN_VECTORISED:
                rows = [UNKNOWN_ROW if value is None else self.row(value) for value in ids.to_pylist()]
                return np.array(rows, dtype=np.int64)
            positions = sorted_positions(self._sorted, ids)
            return np.where(positions >= 0, self._sorted_rows[positions], UNKNOWN_ROW)
        # Hashes the whole map: a seventh of a second for a million strings.
        positions = pc.index_in(ids, value_set=self._ids)
        rows = pc.fill_null(positions.cast(pa.int64()), UNKNOWN_ROW - self.first_row)
        return np.asarray(rows, dtype=np.int64) + self.first_row

    def ids(self, rows: IntArray) -> list[Id]:
        """Returns the ids of rows that are in the map."""
        positions = np.asarray(rows, dtype=np.int64) - self.first_row
        assert positions.size == 0 or (positions.min() >= 0 and positions.max() < len(self)), (
            "row outside the map"
        )
        return self._ids.take(pa.array(positions)).to_pylist()  # type: ignore[no-any-return]


def check_ids(ids: pa.Array | pa.ChunkedArray, name: str, where: str) -> None:
    """Check that each row has an id of its own.

    Args:
        ids: the id of each row.
        name: column of the ids, for the message.
        where: file or table of the rows, for the message.

    Raises:
        UserError: a row has no id, or two rows have the same.
    """
    if ids.null_count:
        raise UserError(f"{where}: {ids.null_count} rows have no {name}")
    if repeated := len(ids) - len(ids.unique()):
        raise UserError(f"{where}: {repeated} rows repeat an {name}")


def parsed(ids: IdMap, value: Id, where: str) -> Id:
    """`IdMap.parse`, with the origin of the value in the message.

    Raises:
        UserError: the value is not of the map's type.
    """
    try:
        return ids.parse(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def parsed_or_none(ids: IdMap, value: Id) -> Id | None:
    """Returns `IdMap.parse`, None where the value is not of the map's type."""
    try:
        return ids.parse(value)
    except UserError:
        return None
