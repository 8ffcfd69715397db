"""Items and their offers as filters see them: which rows meet what, and which of an item's offers is the best that does.

Shape legend: R item rows (special rows included), U units (every offer, then every item that has none), C candidates.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from passerelle.arrays import Float64Array, Int64Array, IntArray
from passerelle.bundle import Bundle
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.columns import HALF_EARTH_KM, Columns, Mask, arc_km
from serving.catalogue.offers import OFFER_ID, PREFIX, OfferTable
from serving.schemas.filters import And, Filter, Leaf, Not, Or, Overlaps, Within, columns_of

_RADII_KM = (5.0, 20.0, 80.0, 320.0, HALF_EARTH_KM)
_FEW = 20_000
"""Of so many items all distances are computed at once."""
_STRIDE = 4096


@dataclass(frozen=True)
class Eligible:
    """What meets some filters."""

    rows_R: Mask
    units_U: Mask | None
    """None where no filter looked at offers: then all offers of an item do."""


def is_offers(name: str) -> bool:
    """Whether a column is one of offers."""
    return name.startswith(PREFIX)


def item_columns(bundle: Bundle) -> Columns:
    """Those of a bundle's items, by item row."""
    return Columns(bundle.items, bundle.manifest.item_features, offset=FIRST_ITEM_ROW)


def _first_distinct(rows: Int64Array, squares: Float64Array, k: int) -> tuple[Int64Array, Float64Array]:
    """The k rows with the smallest squares of chords, each once, and their distances; sorts no more than it has to."""
    most = 4 * k
    while True:
        chosen = (
            np.flatnonzero(squares <= np.partition(squares, most)[most])
            if most < len(squares)
            else np.arange(len(squares))
        )
        order = chosen[np.lexsort((rows[chosen], squares[chosen]))]
        _, first = np.unique(rows[order], return_index=True)
        if len(first) >= k or most >= len(squares):
            best = order[np.sort(first)[:k]]
            return rows[best], arc_km(squares[best])
        most *= 4


class Catalogue:
    """The columns that filters may name.

    Args:
        items: those of items (`item_columns`).
        offers: None where items are sold as they are.
    """

    def __init__(self, items: Columns, offers: OfferTable | None = None) -> None:
        self.items = items
        self.offers = offers
        if offers is None:
            return
        num_rows = self.items.num_rows
        without = np.setdiff1d(np.arange(FIRST_ITEM_ROW, num_rows), offers.item_rows)
        empty = pa.table({field.name: pa.nulls(len(without), field.type) for field in offers.table.schema})
        self._units = Columns(pa.concat_tables([offers.table, empty]), offers.features, things="offer")
        self._row_U = np.concatenate([offers.item_rows, without])
        self._starts_R = np.searchsorted(offers.item_rows, np.arange(num_rows + 1))

    def eligible(self, filters: Sequence[Filter], *, with_offer: bool = False) -> Eligible:
        """What meets every filter.

        Args:
            with_offer: items without an offer that does are left out.

        Raises:
            UserError: a column is not known, its kind does not go with the operation, or a value is of another type.
        """
        of_offers = any(is_offers(name) for name in columns_of(filters))
        if of_offers and self.offers is None:
            raise UserError("filters: there are no offers here, so no `offer.` columns")
        if self.offers is None or not (of_offers or with_offer):
            return Eligible(self._masked(filters, units=False), None)
        units_U = self._masked(filters, units=True)
        if with_offer:
            units_U[len(self.offers.item_rows) :] = False
        rows_R = np.zeros(self.items.num_rows, dtype=bool)
        rows_R[self._row_U[units_U]] = True
        return Eligible(rows_R, units_U)

    def best_offers(
        self, rows_C: Int64Array, eligible: Eligible, keys: Sequence[Callable[[Int64Array], Float64Array]]
    ) -> Int64Array:
        """Of each item the eligible offer with the smallest key (ties by the next key); -1 where it has none.

        Args:
            keys: make numbers of units, the most important first; NaN comes last.
        """
        assert self.offers is not None, "no offers"
        owners, offers = self._offers_of(rows_C)
        if eligible.units_U is not None:
            owners, offers = owners[eligible.units_U[offers]], offers[eligible.units_U[offers]]
        order = np.lexsort((offers, *(key(offers) for key in reversed(keys)), owners))
        owners, first = np.unique(owners[order], return_index=True)
        found_C = np.full(len(rows_C), -1, dtype=np.int64)
        found_C[owners] = offers[order][first]
        return found_C

    def numbers(self, name: str) -> Float64Array:
        """A column of numbers, by unit where it is one of offers, by item row else."""
        columns, column = self._of(name)
        return columns.numbers(column)

    def first_in_time(
        self, name: str, from_ms: int, k: int, allowed_R: Mask, units_U: Mask | None, *, ahead: bool
    ) -> tuple[Int64Array, Float64Array]:
        """The k allowed items whose times come first from a moment on (`ahead`), or last before it, and how many milliseconds away.

        Of several offers the one that comes first counts. Looks no further along the times than it has to.

        Args:
            units_U: the offers that count, where the column is one of offers; None for all.
        """
        columns, column = self._of(name)
        order, times_ms = columns.in_time(column, ahead=ahead), columns.numbers(column)
        sign = 1 if ahead else -1
        place = bisect_left(range(len(order)), sign * from_ms, key=lambda one: sign * times_ms[order[one]])
        rows, aways_ms = np.empty(0, dtype=np.int64), np.empty(0)
        stride = max(_STRIDE, 2 * k)
        while place < len(order) and len(rows) < k:
            part = order[place : place + stride]
            place, stride = place + stride, 2 * stride
            part = part[self._counts(part, name, allowed_R, units_U)]
            rows = np.concatenate([rows, self._rows(part, name)])
            aways_ms = np.concatenate([aways_ms, sign * (times_ms[part] - from_ms)])
            rows, first = np.unique(rows, return_index=True)  # the first of each in the order of time
            aways_ms = aways_ms[first]
            by_time = np.lexsort((rows, aways_ms))
            rows, aways_ms = rows[by_time], aways_ms[by_time]
        return rows[:k], aways_ms[:k]

    def put_in_time(self, name: str, *, ahead: bool) -> None:
        """Make now what `first_in_time` needs, so that no request waits for it."""
        columns, column = self._of(name)
        columns.in_time(column, ahead=ahead)

    def nearest(
        self, name: str, place: tuple[float, float], k: int, allowed_R: Mask, units_U: Mask | None
    ) -> tuple[Int64Array, Float64Array]:
        """The k allowed items nearest to a place (latitude, longitude), and how many kilometres away; of several offers the nearest counts.

        Args:
            units_U: the offers that count, where the column is one of offers; None for all.
        """
        columns, column = self._of(name)
        if np.count_nonzero(allowed_R) <= _FEW:
            found = self._units_of(np.flatnonzero(allowed_R), name)
            found = found if units_U is None else found[units_U[found]]
            squares = columns.square_chords(column, *place, found)
            there = ~np.isnan(squares)
            return _first_distinct(self._rows(found[there], name), squares[there], k)
        for radius_km in _RADII_KM:
            near, squares = columns.around(column, *place, radius_km)
            counts = self._counts(near, name, allowed_R, units_U)
            rows, distances_km = _first_distinct(self._rows(near[counts], name), squares[counts], k)
            if len(rows) == k:
                break
        return rows, distances_km

    def within(self, name: str, place: tuple[float, float], radius_km: float, eligible: Eligible) -> Mask:
        """Item rows [R] that lie, or of which an eligible offer lies, within a distance of a place."""
        columns, column = self._of(name)
        found, _ = columns.around(column, *place, radius_km)
        rows_R = np.zeros(self.items.num_rows, dtype=bool)
        rows_R[self._rows(found[self._counts(found, name, eligible.rows_R, eligible.units_U)], name)] = True
        return rows_R

    def distances_km(self, name: str, place: tuple[float, float], units: IntArray) -> Float64Array:
        """How far away some units are, by a column of offers; NaN where there is no place."""
        columns, column = self._of(name)
        return arc_km(columns.square_chords(column, *place, units))

    def _of(self, name: str) -> tuple[Columns, str]:
        """The columns that a name is of, and what it is called there."""
        return (self._units, name.removeprefix(PREFIX)) if is_offers(name) else (self.items, name)

    def _rows(self, found: IntArray, name: str) -> Int64Array:
        """Item rows of what was found by a column."""
        return np.asarray(self._row_U[found] if is_offers(name) else found, dtype=np.int64)

    def _units_of(self, rows: Int64Array, name: str) -> Int64Array:
        """What may be found of some items by a column: their offers, or themselves."""
        return self._offers_of(rows)[1] if is_offers(name) else rows

    def _counts(self, found: IntArray, name: str, allowed_R: Mask, units_U: Mask | None) -> Mask:
        """Which of those that were found by a column count."""
        allowed = allowed_R[self._rows(found, name)]
        return allowed & units_U[found] if is_offers(name) and units_U is not None else allowed

    def _offers_of(self, rows_C: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Of every offer of some items the place of its item among them, and its unit."""
        counts_C = self._starts_R[rows_C + 1] - self._starts_R[rows_C]
        owners = np.repeat(np.arange(len(rows_C)), counts_C)
        before_C = np.cumsum(counts_C) - counts_C
        return owners, np.arange(len(owners)) + np.repeat(self._starts_R[rows_C] - before_C, counts_C)

    def require(self, name: str, kinds: Sequence[str], where: str) -> None:
        """Check that a column is there, and of one of these kinds.

        Raises:
            UserError: it is not.
        """
        if is_offers(name) and self.offers is None:
            raise UserError(f"{where}: {name!r} is a column of offers, and there are none")
        known = self._units.kinds if is_offers(name) else self.items.kinds
        kind = known.get(name.removeprefix(PREFIX) if is_offers(name) else name)
        if kind not in kinds:
            there = ", ".join(sorted(other for other, is_ in known.items() if is_ in kinds)) or "none"
            is_what = "not known" if kind is None else kind
            raise UserError(
                f"{where}: column {name!r} is {is_what}; of {' and '.join(kinds)} there are {there}"
            )

    def offer_ids(self) -> pa.Array:
        """By unit."""
        assert self.offers is not None, "no offers"
        return self.offers.table.column(OFFER_ID)

    def _masked(self, filters: Sequence[Filter], *, units: bool) -> Mask:
        mask = np.ones(len(self._row_U) if units else self.items.num_rows, dtype=bool)
        if not units:
            mask[:FIRST_ITEM_ROW] = False
        for position, condition in enumerate(filters):
            mask &= self._tree(condition, f"filters.{position}", units=units)
        return mask

    def _tree(self, condition: Filter, path: str, *, units: bool) -> Mask:
        if isinstance(condition, Not):
            return ~self._tree(condition.condition, f"{path}.condition", units=units)
        if isinstance(condition, And | Or):
            masks = (
                self._tree(part, f"{path}.conditions.{place}", units=units)
                for place, part in enumerate(condition.conditions)
            )
            combine = np.logical_and if isinstance(condition, And) else np.logical_or
            mask = next(masks)
            for other in masks:
                combine(mask, other, out=mask)
            return mask
        names = columns_of([condition])
        if not any(map(is_offers, names)):
            mask_R = self.items.mask(condition, path)
            return mask_R[self._row_U] if units else mask_R
        return self._of_offers(condition, path)

    def _of_offers(self, condition: Leaf, path: str) -> Mask:
        if isinstance(condition, Overlaps):
            if not (is_offers(condition.start) and is_offers(condition.end)):
                raise UserError(
                    f"{path}: one of columns {condition.start!r} and {condition.end!r} is of offers, the other of items"
                )
            ends = {"start": condition.start.removeprefix(PREFIX), "end": condition.end.removeprefix(PREFIX)}
            return self._units.mask(condition.model_copy(update=ends), path)
        plain_column = {"column": condition.column.removeprefix(PREFIX)}
        if not isinstance(condition, Within) or condition.radius_by is None:
            return self._units.mask(condition.model_copy(update=plain_column), path)
        plain = condition.model_copy(update=plain_column)
        if not is_offers(condition.column):
            raise UserError(f"{path}: the place is of items, and the column that radii go by of offers")
        by = condition.radius_by
        if is_offers(by.column):
            own = by.model_copy(update={"column": by.column.removeprefix(PREFIX)})
            return self._units.mask(plain.model_copy(update={"radius_by": own}), path)
        angles_R = self.items.angles(condition.radius_km, by, f"{path}.radius_by")
        return self._units.within(plain, f"{path}: column {condition.column!r}", angles_R[self._row_U])
