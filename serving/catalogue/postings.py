"""Which rows have which value of a column: what conditions on single values are answered from.

Shape legend: V values that are looked up.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import Int64Array
from passerelle.arrow import places_in, ragged
from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError
from serving.schemas.filters import Value

_ALONE = 8
"""So many values are looked up one by one."""
_TOGETHER = (pa.int64(), pa.int32(), pa.int16(), pa.int8(), pa.float64(), pa.float32())


@dataclass(frozen=True)
class Postings:
    """The rows of each value of a column of single or several values; searched by halves, as a hash of millions of titles would not fit."""

    values: pa.Array
    """Distinct, in order."""
    rows: npt.NDArray[np.int32]
    starts: Int64Array

    def rows_with(self, values: Sequence[Value], where: str) -> npt.NDArray[np.int32]:
        """Rows that have one of some values.

        Raises:
            UserError: a value is not of the column's type.
        """
        wanted = list(dict.fromkeys(self._checked(value, where) for value in values))
        codes = (
            self._codes(wanted)
            if len(wanted) > _ALONE
            else [code for value in wanted for code in self._code(value)]
        )
        return np.concatenate(
            [self.rows[:0], *(self.rows[self.starts[code] : self.starts[code + 1]] for code in codes)]
        )

    def _code(self, value: Any) -> range:
        """Of one value; none where it is not there."""
        codes = range(len(self.values))
        first, after = (
            find(codes, value, key=lambda code: self.values[code].as_py())
            for find in (bisect_left, bisect_right)
        )
        return codes[first:after]

    def _codes(self, wanted: list[Any]) -> Sequence[int]:
        """Of many values, found together."""
        kind = self.values.type
        if _is_text(kind):
            found = places_in(self.values, pa.array([value for value in wanted if _is_unicode(value)], kind))
        elif kind in _TOGETHER:
            held = pa.int64() if pa.types.is_integer(kind) else pa.float64()
            found = places_in(
                self.values.cast(held), pa.array(_exact(wanted, pa.types.is_integer(kind)), held)
            )
        else:
            return [code for value in wanted for code in self._code(value)]
        codes: list[int] = found[found >= 0].tolist()
        return codes

    def _checked(self, value: Value, where: str) -> Any:
        kind = self.values.type
        expected, fits = (
            ("text", isinstance(value, str))
            if _is_text(kind)
            else ("true or false", isinstance(value, bool))
            if pa.types.is_boolean(kind)
            else ("numbers", isinstance(value, int | float) and not isinstance(value, bool))
        )
        if not fits:
            raise UserError(f"{where} holds {expected}, got {value!r}")
        return value


def _is_text(value_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(value_type) or pa.types.is_large_string(value_type))


def _is_unicode(text: str) -> bool:
    """Whether it can be written at all: halves of characters come in by JSON, and are in no file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _exact(wanted: Sequence[float], is_whole: bool) -> list[float]:
    """Those numbers that a column of whole numbers of 64 bits, or of floats, can hold."""
    found: list[float] = []
    for value in wanted:
        try:
            held = int(value) if is_whole else float(value)
        except OverflowError:
            continue
        if held == value and (not is_whole or -(2**63) <= held < 2**63):
            found.append(held)
    return found


def finite(column: pa.Array) -> pa.Array:
    """Nothing where there is no number, as files that know no nulls have it; and one zero, not two."""
    if not pa.types.is_floating(column.type):
        return column
    column = column.cast(pa.float32()) if column.type == pa.float16() else column
    return pc.if_else(
        pc.is_finite(column), pc.add(column, pa.scalar(0, column.type)), pa.scalar(None, column.type)
    )


def make_postings(table: pa.Table, feature: FeatureColumn, offset: int) -> Postings:
    """Of one column of a table; what has no value is in none.

    Args:
        offset: what is added to the rows of the table.
    """
    if feature.kind == "multi_categorical":
        offsets, _ = ragged(table, feature.name)
        flat = table.column(feature.name).combine_chunks().flatten()
        values = flat.drop_null()
        rows = np.repeat(np.arange(table.num_rows), np.diff(offsets))[
            flat.is_valid().to_numpy(zero_copy_only=False)
        ]
    else:
        column = finite(table.column(feature.name).combine_chunks())
        values = column.drop_null()
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    encoded = values.dictionary_encode()
    distinct = encoded.dictionary
    ordered = pc.sort_indices(distinct.cast(pa.uint8()) if pa.types.is_boolean(distinct.type) else distinct)
    place_of = np.empty(len(ordered), dtype=np.int32)
    place_of[ordered.to_numpy()] = np.arange(len(ordered))
    codes = place_of[encoded.indices.to_numpy(zero_copy_only=False)]
    counts = np.bincount(codes, minlength=len(distinct))
    rows_by_value = (rows[np.argsort(codes, kind="stable")] + offset).astype(np.int32)
    return Postings(distinct.take(ordered), rows_by_value, np.concatenate([[0], np.cumsum(counts)]))
