"""Filters over item columns: trees of typed conditions, compiled to one boolean mask. Never to a string.

    [{"op": "contains", "column": "genres", "value": "Drama"},
     {"op": "or", "conditions": [{"op": "range", "column": "year", "min": 1990}, {"op": "not", "condition": ...}]}]

An item whose value is missing meets no condition on that column, and so meets the `not` of each: `present` tells them apart.
Shape legend: R item rows (special rows included).
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
from passerelle.encoding import on_the_sphere, points
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


class Within(Config):
    """The item's place lies within so many kilometres of a point, along the surface of the Earth."""

    op: Literal["within"]
    column: str
    latitude: Annotated[StrictInt | StrictFloat, Field(ge=-90, le=90)]
    longitude: Annotated[StrictInt | StrictFloat, Field(ge=-180, le=180)]
    radius_km: Annotated[StrictInt | StrictFloat, Field(gt=0, le=20_038)]


class Present(Config):
    """The item has a value (of several values, one at least)."""

    op: Literal["present"]
    column: str


class And(Config):
    """All of these hold."""

    op: Literal["and"]
    conditions: "tuple[Filter, ...]" = Field(min_length=1, max_length=100)


class Or(Config):
    """One of these holds."""

    op: Literal["or"]
    conditions: "tuple[Filter, ...]" = Field(min_length=1, max_length=100)


class Not(Config):
    """This does not hold: also of an item without a value."""

    op: Literal["not"]
    condition: "Filter"


_OPERATIONS: dict[FeatureKind, tuple[str, ...]] = {
    "categorical": ("equals", "in", "present"),
    "multi_categorical": ("contains", "present"),
    "numeric": ("equals", "in", "range", "present"),
    "timestamp": ("equals", "in", "range", "present"),
    "text": ("equals", "in", "present"),
    "place": ("within", "present"),
}
"""By kind of column; the others are for networks."""
_NUMBERS: tuple[FeatureKind, ...] = ("numeric", "timestamp")
_CODED: tuple[FeatureKind, ...] = ("categorical", "multi_categorical", "text", *_NUMBERS)

Filter = Annotated[Equals | In | Range | Contains | Within | Present | And | Or | Not, Field(discriminator="op")]
for _group in (And, Or, Not):
    _group.model_rebuild()

MOST_CONDITIONS = 1000
EARTH_RADIUS_KM = 6371.0088


def count_conditions(filters: Sequence[Filter]) -> int:
    """All conditions of some trees, groups among them."""
    waiting, count = list(filters), 0
    while waiting:
        condition = waiting.pop()
        count += 1
        waiting += condition.conditions if isinstance(condition, And | Or) else [condition.condition] if isinstance(condition, Not) else []
    return count


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


def _points(items: pa.Table, feature: FeatureColumn) -> npt.NDArray[np.float64]:
    found = points(items.column(feature.name).combine_chunks(), feature.name)
    return np.concatenate([np.full((FIRST_ITEM_ROW, 3), np.nan), found])


class ItemFilters:
    """The filterable columns of a bundle, held in a form that makes a mask quickly.

    Args:
        items: the item table in row order.
        item_features: its columns and their kinds.
    """

    def __init__(self, items: pa.Table, item_features: Sequence[FeatureColumn]) -> None:
        self._num_rows = items.num_rows + FIRST_ITEM_ROW
        self._kinds = {feature.name: feature.kind for feature in item_features}
        self._codes = {feature.name: _codes(items, feature) for feature in item_features if feature.kind in _CODED}
        self._points = {feature.name: _points(items, feature) for feature in item_features if feature.kind == "place"}
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
            mask_R &= self._tree(condition, f"filters.{position}")
        return mask_R

    def _tree(self, condition: Filter, path: str) -> Mask:
        if isinstance(condition, Not):
            return ~self._tree(condition.condition, f"{path}.condition")
        if isinstance(condition, And | Or):
            masks = (self._tree(part, f"{path}.conditions.{place}") for place, part in enumerate(condition.conditions))
            combine = np.logical_and if isinstance(condition, And) else np.logical_or
            mask_R = next(masks)
            for other_R in masks:
                combine(mask_R, other_R, out=mask_R)
            return mask_R
        return self._one(condition, f"{path}: column {condition.column!r}")

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
        if isinstance(condition, Within):
            centre = on_the_sphere(condition.latitude, condition.longitude)
            squares_R = np.square(self._points[condition.column] - centre).sum(axis=1)  # of chords: exact for small distances, too
            angle = min(condition.radius_km / EARTH_RADIUS_KM, np.pi)
            return np.asarray(squares_R <= (2 * np.sin(angle / 2)) ** 2)
        if isinstance(condition, Present):
            return self._present(condition.column, kind)
        values = condition.values if isinstance(condition, In) else (condition.value,)
        return self._codes[condition.column].rows_with(values, self._num_rows, where)

    def _present(self, column: str, kind: FeatureKind) -> Mask:
        if kind == "place":
            return np.asarray(~np.isnan(self._points[column]).any(axis=1))
        mask_R = np.zeros(self._num_rows, dtype=bool)
        mask_R[self._codes[column].rows] = True
        return mask_R
