"""Filters over item columns: typed conditions, all of which must hold, compiled to one boolean mask. Never to a string.

    [{"op": "contains", "column": "genres", "value": "Drama"}, {"op": "range", "column": "year", "min": 1990}]

An item whose value is missing meets no condition on that column. Shape legend: R item rows (special rows included).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from passerelle.arrow import ragged
from passerelle.config import Config
from passerelle.dataset import FeatureColumn, FeatureKind
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW

Value = StrictBool | StrictInt | StrictFloat | StrictStr
Mask = npt.NDArray[np.bool_]


class Equals(Config):
    """The item's value is this one."""

    op: Literal["equals"]
    column: str
    value: Value


class In(Config):
    """The item's value is one of these."""

    op: Literal["in"]
    column: str
    values: tuple[Value, ...] = Field(min_length=1, max_length=10_000)


class Range(Config):
    """The item's number lies between `min` and `max`, both included; one of them may be absent."""

    op: Literal["range"]
    column: str
    min: StrictInt | StrictFloat | None = None
    max: StrictInt | StrictFloat | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Range":
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Contains(Config):
    """One of the item's several values is this one."""

    op: Literal["contains"]
    column: str
    value: Value


_OPERATIONS: dict[FeatureKind, tuple[str, ...]] = {
    "categorical": ("equals", "in"),
    "multi_categorical": ("contains",),
    "numeric": ("equals", "in", "range"),
    "timestamp": ("equals", "in", "range"),
    "text": ("equals", "in"),
}
"""By kind of column; the others are for networks."""
_NUMBERS: tuple[FeatureKind, ...] = ("numeric", "timestamp")

Filter = Annotated[Equals | In | Range | Contains, Field(discriminator="op")]


@dataclass(frozen=True)
class _Codes:
    """A column of single or several values: the code of each value, and the row that each code belongs to."""

    code_of: dict[Hashable, int]
    codes: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    value_type: pa.DataType

    def rows_with(self, wanted: Sequence[Value], num_rows: int, where: str) -> Mask:
        known = [self.code_of[value] for value in wanted if self._checked(value, where) in self.code_of]
        mask_R = np.zeros(num_rows, dtype=bool)
        mask_R[self.rows[np.isin(self.codes, known)]] = True
        return mask_R

    def _checked(self, value: Value, where: str) -> Value:
        expected, fits = (
            ("text", isinstance(value, str))
            if _is_text(self.value_type)
            else ("true or false", isinstance(value, bool))
            if pa.types.is_boolean(self.value_type)
            else ("numbers", isinstance(value, int | float) and not isinstance(value, bool))
        )
        if not fits:
            raise UserError(f"{where} holds {expected}, got {value!r}")
        return value


def _is_text(value_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(value_type) or pa.types.is_large_string(value_type))


def _codes(items: pa.Table, feature: FeatureColumn) -> _Codes:
    if feature.kind == "multi_categorical":
        offsets, _ = ragged(items, feature.name)
        values = items.column(feature.name).combine_chunks().flatten()
        rows = np.repeat(np.arange(items.num_rows), np.diff(offsets))
    else:
        column = items.column(feature.name).combine_chunks()
        values = column.drop_null()
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    encoded = values.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    code_of = {value: code for code, value in enumerate(encoded.dictionary.to_pylist())}
    return _Codes(code_of, codes, rows + FIRST_ITEM_ROW, values.type)


def _numbers(items: pa.Table, feature: FeatureColumn) -> npt.NDArray[np.float64]:
    values = items.column(feature.name).cast(pa.float64()).to_numpy()
    return np.concatenate([np.full(FIRST_ITEM_ROW, np.nan), values])


class ItemFilters:
    """The filterable columns of a bundle, held in a form that makes a mask quickly.

    Args:
        items: the item table in row order.
        item_features: its columns and their kinds.
    """

    def __init__(self, items: pa.Table, item_features: Sequence[FeatureColumn]) -> None:
        self._num_rows = items.num_rows + FIRST_ITEM_ROW
        self._kinds = {feature.name: feature.kind for feature in item_features}
        self._codes = {feature.name: _codes(items, feature) for feature in item_features if feature.kind in _OPERATIONS}
        self._numbers = {feature.name: _numbers(items, feature) for feature in item_features if feature.kind in _NUMBERS}

    def mask(self, filters: Sequence[Filter]) -> Mask:
        """Rows that meet every condition; special rows never do.

        Returns:
            bool [R].

        Raises:
            UserError: a column is not known, its kind does not go with the operation, or a value is of another type.
        """
        mask_R = np.ones(self._num_rows, dtype=bool)
        mask_R[:FIRST_ITEM_ROW] = False
        for position, condition in enumerate(filters):
            mask_R &= self._one(condition, f"filters.{position}: column {condition.column!r}")
        return mask_R

    def _one(self, condition: Any, where: str) -> Mask:
        kind = self._kinds.get(condition.column)
        if kind is None:
            raise UserError(f"{where} is not an item column; known are {', '.join(sorted(self._kinds)) or 'none'}")
        if kind not in _OPERATIONS:
            raise UserError(f"{where} is a {kind}, which cannot be filtered by")
        if condition.op not in _OPERATIONS[kind]:
            raise UserError(f"{where} is {kind}: use {' or '.join(_OPERATIONS[kind])}, not {condition.op}")
        if isinstance(condition, Range):
            numbers_R = self._numbers[condition.column]
            low = -np.inf if condition.min is None else condition.min
            high = np.inf if condition.max is None else condition.max
            return np.asarray((numbers_R >= low) & (numbers_R <= high))
        values = condition.values if isinstance(condition, In) else (condition.value,)
        return self._codes[condition.column].rows_with(values, self._num_rows, where)
