"""Items and their offers as filters see them: which rows meet what, and which of an item's offers is the best that does.

Shape legend: R item rows (special rows included), U units (every offer, then every item that has none), C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from passerelle.bundle import Bundle
from passerelle.encoding import on_the_sphere
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from serving.columns import EARTH_RADIUS_KM, HALF_EARTH_KM, Columns, Float64Array, Mask
from serving.filters import And, Filter, Leaf, Not, Or, Overlaps, Within, columns_of
from serving.offers import OFFER_ID, PREFIX, OfferTable

Int64Array = npt.NDArray[np.int64]

_FIRST_RADIUS_KM = 5.0


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

    def best_offers(self, rows_C: Int64Array, eligible: Eligible, keys_U: Sequence[Float64Array]) -> Int64Array:
        """Of each item the eligible offer with the smallest key (ties by the next key); -1 where it has none.

        Args:
            keys_U: numbers by unit, the most important first; NaN comes last.
        """
        assert self.offers is not None, "no offers"
        counts_C = self._starts_R[rows_C + 1] - self._starts_R[rows_C]
        owners = np.repeat(np.arange(len(rows_C)), counts_C)
        offers = np.arange(len(owners)) + np.repeat(self._starts_R[rows_C] - np.concatenate([[0], np.cumsum(counts_C)[:-1]]), counts_C)
        if eligible.units_U is not None:
            owners, offers = owners[eligible.units_U[offers]], offers[eligible.units_U[offers]]
        order = np.lexsort((offers, *(key_U[offers] for key_U in reversed(keys_U)), owners))
        owners, first = np.unique(owners[order], return_index=True)
        found_C = np.full(len(rows_C), -1, dtype=np.int64)
        found_C[owners] = offers[order][first]
        return found_C

    def numbers(self, name: str) -> Float64Array:
        """A column of numbers, by unit where it is one of offers, by item row else."""
        return self._units.numbers(name.removeprefix(PREFIX)) if is_offers(name) else self.items.numbers(name)

    def smallest(self, values: Float64Array, name: str, eligible: Eligible) -> Float64Array:
        """A value [R] for each item: its own, or the smallest of its eligible offers; infinite where there is none.

        Args:
            values: by unit where `name` is a column of offers, by item row else.
        """
        if not is_offers(name):
            return np.where(np.isnan(values) | ~eligible.rows_R, np.inf, values)
        values_U = np.where(np.isnan(values), np.inf, values)
        if eligible.units_U is not None:
            values_U = np.where(eligible.units_U, values_U, np.inf)
        smallest_R = np.full(self.items.num_rows, np.inf)
        np.minimum.at(smallest_R, self._row_U, values_U)
        return np.where(eligible.rows_R, smallest_R, np.inf)

    def nearest(
        self, name: str, place: tuple[float, float], k: int, eligible: Eligible, allowed_R: Mask | None
    ) -> tuple[Int64Array, Float64Array]:
        """The k allowed items nearest to a place (latitude, longitude), and how many kilometres away; of several offers the nearest counts.

        Args:
            allowed_R: None allows all that are eligible.
        """
        columns, mask = (self._units, eligible.units_U) if is_offers(name) else (self.items, None)
        allowed_R = eligible.rows_R if allowed_R is None else allowed_R
        radius_km = _FIRST_RADIUS_KM
        while True:
            found, distances_km = columns.around(name.removeprefix(PREFIX), *place, radius_km)
            if mask is not None:
                found, distances_km = found[mask[found]], distances_km[mask[found]]
            rows, first = np.unique(self._row_U[found] if is_offers(name) else found, return_index=True)  # the nearest come first
            distances_km = distances_km[first]
            there = allowed_R[rows]
            if np.count_nonzero(there) >= k or radius_km >= HALF_EARTH_KM:
                rows, distances_km = rows[there], distances_km[there]
                best = np.lexsort((rows, distances_km))[:k]
                return rows[best].astype(np.int64), distances_km[best]
            radius_km *= 4

    def within(self, name: str, place: tuple[float, float], radius_km: float, eligible: Eligible) -> Mask:
        """Item rows [R] that lie, or of which an eligible offer lies, within a distance of a place."""
        rows_R = np.zeros(self.items.num_rows, dtype=bool)
        columns = self._units if is_offers(name) else self.items
        found, _ = columns.around(name.removeprefix(PREFIX), *place, radius_km)
        if is_offers(name):
            found = found if eligible.units_U is None else found[eligible.units_U[found]]
            rows_R[self._row_U[found]] = True
        else:
            rows_R[found] = True
        return rows_R & eligible.rows_R

    def distances_km(self, name: str, place: tuple[float, float]) -> Float64Array:
        """How far away each unit (where the column is one of offers) or item row is; NaN where there is no place."""
        points = self._units.points(name.removeprefix(PREFIX)) if is_offers(name) else self.items.points(name)
        chords = np.sqrt(np.square(points - on_the_sphere(*place)).sum(axis=1))
        return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(1.0, chords / 2)))

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
            raise UserError(f"{where}: column {name!r} is {is_what}; of {' and '.join(kinds)} there are {there}")

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
            masks = (self._tree(part, f"{path}.conditions.{place}", units=units) for place, part in enumerate(condition.conditions))
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
                raise UserError(f"{path}: one of columns {condition.start!r} and {condition.end!r} is of offers, the other of items")
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
