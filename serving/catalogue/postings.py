"""Inverted index of a column: the rows of each value, which answers conditions on single values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import Int32Array, Int64Array
from passerelle.arrow import sorted_position, sorted_positions
from passerelle.categories import explode
from passerelle.column_types import is_text
from passerelle.column_values import category_text
from passerelle.errors import UserError
from passerelle.ragged import gather_ragged
from serving.schemas.filters import Value

_MAX_SINGLE_LOOKUPS = 8
"""Up to so many values are looked up one by one, more of them together."""
_BATCH_TYPES = (pa.int64(), pa.int32(), pa.int16(), pa.int8(), pa.float64(), pa.float32())


@dataclass(frozen=True)
class Postings:
    """The rows of each value of a column of single values or of lists.

    Values are found by binary search, as a hash of millions of titles would not fit into memory.
    """

    values: pa.Array
    """Distinct and sorted."""
    rows: Int32Array
    """The rows of the first value, then those of the second, and so on."""
    starts: Int64Array
    """Where the rows of each value start in `rows`; one more than there are values."""

    def rows_with(
        self, values: Sequence[Value], where: str, before: Callable[[int], None] = lambda _: None
    ) -> tuple[Int32Array, Int64Array]:
        """Returns the rows that have one of some values, and how many rows each distinct value has.

        The rows of the first value come first, then those of the second, and so on.

        Args:
            before: called with the number of rows, before they are gathered.

        Raises:
            UserError: a value is not of the column's type.
        """
        wanted = list(dict.fromkeys(self._checked(value, where) for value in values))
        codes = self._codes(wanted) if len(wanted) > _MAX_SINGLE_LOOKUPS else self._codes_one_by_one(wanted)
        starts = self.starts[codes]
        ends = np.where(codes < 0, starts, self.starts[codes + 1])
        before(int((ends - starts).sum()))
        positions, offsets = gather_ragged(starts, ends)
        return self.rows[positions], np.diff(offsets)

    def _codes_one_by_one(self, wanted: Sequence[Any]) -> Int64Array:
        return np.array([sorted_position(self.values, value) for value in wanted], dtype=np.int64)

    def _codes(self, wanted: list[Any]) -> Int64Array:
        """Returns the codes of many values, which are searched together; -1 for one that no row has."""
        kind = self.values.type
        if is_text(kind):
            texts = [value if _is_encodable(value) else None for value in wanted]
            return sorted_positions(self.values, pa.array(texts, kind))
        if kind in _BATCH_TYPES:
            is_integer = pa.types.is_integer(kind)
            wide = pa.int64() if is_integer else pa.float64()
            numbers = pa.array([_representable(value, is_integer) for value in wanted], wide)
            return sorted_positions(self.values.cast(wide), numbers)
        return self._codes_one_by_one(wanted)

    def _checked(self, value: Value, where: str) -> Any:
        kind = self.values.type
        if is_text(kind) and isinstance(value, bool):
            return category_text(value)
        expected, fits = (
            ("text", isinstance(value, str))
            if is_text(kind)
            else ("true or false", isinstance(value, bool))
            if pa.types.is_boolean(kind)
            else ("numbers", isinstance(value, int | float) and not isinstance(value, bool))
        )
        if not fits:
            raise UserError(f"{where} holds {expected}, got {value!r}")
        return value


def _is_encodable(text: str) -> bool:
    """Returns whether a text can be encoded: JSON may hold lone surrogates, which no column holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _representable(value: float, is_integer: bool) -> float | None:
    """Returns a number as a column of int64, or of float64, can hold it exactly; None where it cannot."""
    try:
        converted = int(value) if is_integer else float(value)
    except OverflowError:
        return None
    return converted if converted == value and (not is_integer or -(2**63) <= converted < 2**63) else None


def finite(column: pa.Array) -> pa.Array:
    """Returns a column with null for NaN and infinity, which files without nulls hold, and 0.0 for -0.0."""
    if not pa.types.is_floating(column.type):
        return column
    column = column.cast(pa.float32()) if column.type == pa.float16() else column
    return pc.if_else(
        pc.is_finite(column), pc.add(column, pa.scalar(0, column.type)), pa.scalar(None, column.type)
    )


def make_postings(column: pa.ChunkedArray, offset: int) -> Postings:
    """Returns the index of a column; missing values are not in it.

    Args:
        column: single values or lists of values.
        offset: number that is added to every row.
    """
    row_T, value_T = explode(finite(column.combine_chunks()))
    is_valid_T = value_T.is_valid().to_numpy(zero_copy_only=False)
    row_T, value_T = row_T[is_valid_T], value_T.drop_null()
    if pa.types.is_dictionary(value_T.type):
        value_T = value_T.dictionary_decode()
    encoded = value_T.dictionary_encode()
    distinct = encoded.dictionary
    order = pc.sort_indices(distinct.cast(pa.uint8()) if pa.types.is_boolean(distinct.type) else distinct)
    rank_of = np.empty(len(order), dtype=np.int32)
    rank_of[order.to_numpy()] = np.arange(len(order))
    code_T = rank_of[encoded.indices.to_numpy(zero_copy_only=False)]
    counts = np.bincount(code_T, minlength=len(distinct))
    rows_by_value = (row_T[np.argsort(code_T, kind="stable")] + offset).astype(np.int32)
    return Postings(distinct.take(order), rows_by_value, np.concatenate([[0], np.cumsum(counts)]))
