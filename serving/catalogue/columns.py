"""The columns of one table, indexed so that a condition on them becomes a mask quickly.

Shape legend: R rows of the table, after `offset` rows that meet no condition (the special rows of items),
B rows in a band of latitudes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from passerelle.arrays import BoolArray, Float64Array, Int32Array, Int64Array, IntArray
from passerelle.dataset import FeatureColumn, FeatureKind
from passerelle.encoding import on_the_sphere, points
from passerelle.errors import UserError
from serving.catalogue.filter_budget import LOOKUP_WORK, PLACE_WORK, FilterBudget
from serving.catalogue.postings import finite, make_postings
from serving.schemas.filters import Contains, Equals, In, Leaf, Overlaps, Present, RadiusBy, Range, Within

Mask = BoolArray

EARTH_RADIUS_KM = 6371.0088
HALF_EARTH_KM = 20_038.0
OPERATIONS: dict[FeatureKind, tuple[str, ...]] = {
    "categorical": ("equals", "in", "present"),
    "multi_categorical": ("contains", "present"),
    "numeric": ("equals", "in", "range", "present"),
    "timestamp": ("equals", "in", "range", "overlaps", "present"),
    "text": ("equals", "in", "present"),
    "place": ("within", "present"),
}
"""Operations by kind of column; columns of other kinds are inputs of networks only."""
_ANGLE_WORK = 16
"""Of each angle that is written."""
_NUMBERS: tuple[FeatureKind, ...] = ("numeric", "timestamp")
_CODED: tuple[FeatureKind, ...] = ("categorical", "multi_categorical", "text", *_NUMBERS)


def arc_km(square_chords: Float64Array) -> Float64Array:
    """Returns distances in kilometres along the surface of the Earth, from squared chords."""
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(1.0, np.sqrt(square_chords) / 2)))


def _angle(radius_km: float) -> float:
    return min(float(radius_km) / EARTH_RADIUS_KM, float(np.pi))


@dataclass(frozen=True)
class _Places:
    """Points on the unit sphere, NaN where a row has none, with the rows sorted by latitude."""

    points_R3: Float64Array
    northwards: Int32Array
    """The rows that have a point, from south to north."""
    latitude_sines: Float64Array
    """The sine of the latitude of each of `northwards`."""

    def square_chords(self, centre: Float64Array, rows: IntArray) -> Float64Array:
        """Returns squared chords to some rows, exact for small distances too; NaN where there is no place."""
        return np.asarray(np.square(self.points_R3[rows] - centre).sum(axis=1))

    def within(
        self, centre: Float64Array, angles: Float64Array | float, budget: FilterBudget, path: str
    ) -> tuple[Int32Array, Float64Array]:
        """Returns the rows no farther than an angle, and their squared chords.

        Args:
            angles: in radians, one for each row [R] or one for all.
        """
        widest = float(np.max(angles))
        latitude = np.arcsin(np.clip(centre[2], -1, 1))
        margin = 1e-9  # the rounding of two sines
        low, high = (
            np.sin(np.clip(latitude + side, -np.pi / 2, np.pi / 2)) + np.sign(side) * margin
            for side in (-widest, widest)
        )
        band = self.northwards[
            np.searchsorted(self.latitude_sines, low, "left") : np.searchsorted(
                self.latitude_sines, high, "right"
            )
        ]
        budget.spend(PLACE_WORK * len(band), path)
        squares = self.square_chords(centre, band)
        limits = angles if isinstance(angles, float) else angles[band]
        near = squares <= (2 * np.sin(limits / 2)) ** 2
        return band[near], squares[near]


def _numbers(table: pa.Table, feature: FeatureColumn, offset: int) -> Float64Array:
    values = (
        finite(table.column(feature.name).combine_chunks())
        .cast(pa.float64(), safe=False)
        .to_numpy(zero_copy_only=False)
    )
    return np.concatenate([np.full(offset, np.nan), values])


def _places(table: pa.Table, feature: FeatureColumn, offset: int) -> _Places:
    found = points(table.column(feature.name).combine_chunks(), feature.name)
    points_R3 = np.concatenate([np.full((offset, 3), np.nan), found])
    there = np.flatnonzero(~np.isnan(points_R3[:, 2]))
    northwards = there[np.argsort(points_R3[there, 2], kind="stable")].astype(np.int32)
    return _Places(points_R3, northwards, points_R3[northwards, 2])


class Columns:
    """Columns that conditions may name.

    Args:
        table: the values.
        features: the columns of the table and their kinds.
        offset: number of rows before those of the table, which meet no condition.
        row_name: what a row stands for, in messages.
    """

    def __init__(
        self, table: pa.Table, features: Sequence[FeatureColumn], *, offset: int = 0, row_name: str = "item"
    ) -> None:
        self.num_rows = table.num_rows + offset
        self.kinds = {feature.name: feature.kind for feature in features}
        self._row_name = row_name
        self._postings = {
            feature.name: make_postings(table.column(feature.name), offset)
            for feature in features
            if feature.kind in _CODED
        }
        self._places = {
            feature.name: _places(table, feature, offset) for feature in features if feature.kind == "place"
        }
        self._numbers = {
            feature.name: _numbers(table, feature, offset) for feature in features if feature.kind in _NUMBERS
        }
        self.max_visits: int = max([self.num_rows, *(len(one.rows) for one in self._postings.values())])
        """Rows that one condition may visit; a row of several values is visited once for each."""
        self._time_orders: dict[tuple[str, bool], Int32Array] = {}

    def numbers(self, name: str) -> Float64Array:
        """Returns the values [R] of a numeric column or of timestamps, NaN where there is none."""
        return self._numbers[name]

    def time_order(self, name: str, *, ahead: bool) -> Int32Array:
        """Returns the rows that have a time, from the earliest (`ahead`) or from the latest on.

        Rows of equal times are in their own order.
        The order is computed by the first call and kept.
        """
        if (name, ahead) not in self._time_orders:
            times_R = self._numbers[name]
            order = np.argsort(times_R if ahead else -times_R, kind="stable")
            self._time_orders[name, ahead] = order[: np.count_nonzero(~np.isnan(times_R))].astype(np.int32)
        return self._time_orders[name, ahead]

    def groups(self, name: str) -> Int64Array:
        """Returns the value of a column of single categories as a number [R]; -1 where there is none."""
        postings = self._postings[name]
        groups_R = np.full(self.num_rows, -1, dtype=np.int64)
        codes = np.repeat(np.arange(len(postings.starts) - 1), np.diff(postings.starts))
        groups_R[postings.rows] = codes
        return groups_R

    def require(self, name: str, operation: str, where: str) -> None:
        """Checks that an operation applies to a column.

        Args:
            where: names the condition, for messages.

        Raises:
            UserError: there is no such column, or its kind does not fit the operation.
        """
        kind = self.kinds.get(name)
        if kind is None:
            known = ", ".join(sorted(self.kinds)) or "none"
            raise UserError(
                f"{where} is not {'an' if self._row_name[0] in 'aio' else 'a'} {self._row_name} column; "
                f"known are {known}"
            )
        if kind not in OPERATIONS:
            raise UserError(f"{where} is a {kind}, which cannot be filtered by")
        if operation not in OPERATIONS[kind]:
            raise UserError(f"{where} is {kind}: use {' or '.join(OPERATIONS[kind])}, not {operation}")

    def mask(self, condition: Leaf, path: str, budget: FilterBudget) -> Mask:
        """Returns the rows [R] that meet one condition.

        Args:
            path: the path of the condition in the request, for messages.
            budget: work that the condition may do.

        Raises:
            UserError: a column is not known, its kind does not fit the operation, a value its type, or the
                budget does not suffice.
            DeadlineError: the deadline of the budget passes.
        """
        budget.spend(self.num_rows, path)
        if isinstance(condition, Overlaps):
            return self._overlaps(condition, path)
        where = f"{path}: column {condition.column!r}"
        self.require(condition.column, condition.op, where)
        match condition:
            case Range():
                return self._between(self._numbers[condition.column], condition.min, condition.max)
            case Within():
                return self._within_radius(condition, path, budget)
            case Present():
                return self._present(condition.column, path, budget)
            case In() | Equals() | Contains():
                postings = self._postings[condition.column]
                values = condition.values if isinstance(condition, In) else (condition.value,)
                budget.spend(LOOKUP_WORK * len(values), path)
                rows, _ = postings.rows_with(values, where, lambda count: budget.spend(count, path))
                mask_R = np.zeros(self.num_rows, dtype=bool)
                mask_R[rows] = True
                return mask_R

    def _between(self, numbers_R: Float64Array, low: float | None, high: float | None) -> Mask:
        if low is None:
            assert high is not None, "a range has a bound"
            return np.asarray(numbers_R <= high)
        above_R = numbers_R >= low
        return np.asarray(above_R if high is None else above_R & (numbers_R <= high))

    def _overlaps(self, condition: Overlaps, path: str) -> Mask:
        for name in (condition.start, condition.end):
            self.require(name, condition.op, f"{path}: column {name!r}")
        starts_R, ends_R = self._numbers[condition.start], self._numbers[condition.end]
        # negated comparisons let missing values pass
        begun_R = True if condition.max is None else ~(starts_R > condition.max)
        open_R = True if condition.min is None else ~(ends_R < condition.min)
        return np.asarray(begun_R & open_R & ~(np.isnan(starts_R) & np.isnan(ends_R)))

    def _within_radius(self, condition: Within, path: str, budget: FilterBudget) -> Mask:
        by = condition.radius_by
        angles = (
            _angle(condition.radius_km)
            if by is None
            else self.angles(condition.radius_km, by, f"{path}.radius_by", budget)
        )
        return self.within(condition, path, angles, budget)

    def within(
        self, condition: Within, path: str, angles: Float64Array | float, budget: FilterBudget
    ) -> Mask:
        """Returns the rows [R] whose place lies within an angle of the centre.

        Args:
            path: the path of the condition in the request, for messages.
            angles: in radians, one for each row [R] or one for all.
            budget: work that the condition may do.

        Raises:
            UserError: the column is not of places, or the budget does not suffice.
            DeadlineError: the deadline of the budget passes.
        """
        self.require(condition.column, condition.op, f"{path}: column {condition.column!r}")
        centre = on_the_sphere(condition.latitude, condition.longitude)
        rows, _ = self._places[condition.column].within(centre, angles, budget, path)
        mask_R = np.zeros(self.num_rows, dtype=bool)
        mask_R[rows] = True
        return mask_R

    def around(
        self, name: str, latitude: float, longitude: float, radius_km: float
    ) -> tuple[Int32Array, Float64Array]:
        """Returns the rows within a distance of a point, unordered, and squared chords (see `arc_km`)."""
        centre = on_the_sphere(latitude, longitude)
        return self._places[name].within(centre, _angle(radius_km), FilterBudget(), name)

    def square_chords(self, name: str, latitude: float, longitude: float, rows: IntArray) -> Float64Array:
        """Returns squared chords from a point to some rows (see `arc_km`); NaN where there is no place."""
        return self._places[name].square_chords(on_the_sphere(latitude, longitude), rows)

    def angles(self, default_km: float, radius_by: RadiusBy, path: str, budget: FilterBudget) -> Float64Array:
        """Returns the radius of each row as an angle [R], in radians.

        Raises:
            UserError: the column is not of categories, or the budget does not suffice.
            DeadlineError: the deadline of the budget passes.
        """
        where = f"{path}: column {radius_by.column!r}"
        if self.kinds.get(radius_by.column) not in ("categorical", "multi_categorical"):
            raise UserError(f"{where} is not one of categories")
        postings = self._postings[radius_by.column]
        radii_km = radius_by.radii_km
        budget.spend(LOOKUP_WORK * len(radii_km) + _ANGLE_WORK * self.num_rows, path)
        rows, lengths = postings.rows_with(
            list(radii_km), where, lambda count: budget.spend(_ANGLE_WORK * count, path)
        )
        angles_R = np.zeros(self.num_rows)
        np.maximum.at(angles_R, rows, np.repeat([_angle(radius) for radius in radii_km.values()], lengths))
        return np.where(angles_R > 0, angles_R, _angle(default_km))

    def _present(self, name: str, path: str, budget: FilterBudget) -> Mask:
        if name in self._numbers:
            return ~np.isnan(self._numbers[name])
        rows = self._places[name].northwards if name in self._places else self._postings[name].rows
        budget.spend(len(rows), path)
        mask_R = np.zeros(self.num_rows, dtype=bool)
        mask_R[rows] = True
        return mask_R
