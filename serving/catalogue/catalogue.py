"""Items and their offers under filters: eligible ones, the best offer of an item, the nearest items.

Shape legend: R item rows (special rows included), G listings (see `serving.catalogue.filter_masks`),
C candidates, F listings or item rows that were found.
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
from passerelle.ragged import gather_ragged
from serving.catalogue.columns import HALF_EARTH_KM, Columns, Mask, arc_km
from serving.catalogue.filter_budget import FilterBudget
from serving.catalogue.filter_masks import Listings, filter_mask
from serving.catalogue.offers import OFFER_ID, PREFIX, OfferTable, is_offers
from serving.catalogue.strides import growing_slices
from serving.schemas.filters import Filter, columns_of

_RADII_KM = (5.0, 20.0, 80.0, 320.0, HALF_EARTH_KM)
_MAX_FULL_DISTANCES = 20_000
"""For at most so many items, all distances are computed at once."""


@dataclass(frozen=True)
class Eligible:
    """The items and listings that meet some filters."""

    rows_R: Mask
    listings_G: Mask | None
    """None where no filter reads columns of offers: then all offers of an item are eligible."""


def item_columns(bundle: Bundle) -> Columns:
    """Returns the columns of a bundle's items, by item row."""
    return Columns(bundle.items, bundle.manifest.item_features, offset=FIRST_ITEM_ROW)


def _first_distinct(rows: Int64Array, squares: Float64Array, k: int) -> tuple[Int64Array, Float64Array]:
    """Returns the k distinct rows with the smallest squared chords, and their distances in kilometres.

    Sorts no more than it has to.
    """
    pool = 4 * k
    while True:
        chosen = (
            np.flatnonzero(squares <= np.partition(squares, pool)[pool])
            if pool < len(squares)
            else np.arange(len(squares))
        )
        order = chosen[np.lexsort((rows[chosen], squares[chosen]))]
        _, first = np.unique(rows[order], return_index=True)
        if len(first) >= k or pool >= len(squares):
            best = order[np.sort(first)[:k]]
            return rows[best], arc_km(squares[best])
        pool *= 4


class Catalogue:
    """The columns that filters may name.

    Args:
        items: the columns of items (`item_columns`).
        offers: None where items are not sold as offers.
    """

    def __init__(self, items: Columns, offers: OfferTable | None = None) -> None:
        self.items = items
        self.offers = offers
        if offers is None:
            return
        num_rows = self.items.num_rows
        without = np.setdiff1d(np.arange(FIRST_ITEM_ROW, num_rows), offers.item_rows)
        empty = pa.table({field.name: pa.nulls(len(without), field.type) for field in offers.table.schema})
        self._listings = Listings(
            Columns(pa.concat_tables([offers.table, empty]), offers.features, row_name="offer"),
            np.concatenate([offers.item_rows, without]),
        )
        self._starts_R = np.searchsorted(offers.item_rows, np.arange(num_rows + 1))

    @property
    def size(self) -> int:
        """Number of item rows and offers, which a condition may visit."""
        num_offers = 0 if self.offers is None else len(self.offers.item_rows)
        return int(self.items.num_rows + num_offers)

    @property
    def max_visits(self) -> int:
        """Rows of items and listings that one condition may visit."""
        visits: int = self.items.max_visits
        if self.offers is not None:
            visits = max(visits, self._listings.columns.max_visits) + len(self._listings.row_G)
        return visits

    def eligible(
        self,
        filters: Sequence[Filter],
        configured: Sequence[Filter] = (),
        *,
        with_offer: bool = False,
        budget: FilterBudget | None = None,
    ) -> Eligible:
        """Returns the items and listings that meet every filter.

        Args:
            filters: of the request.
            configured: more of them, for which the budget does not count.
            with_offer: leave out items without an eligible offer.
            budget: work that the filters may do; any, if absent.

        Raises:
            UserError: a column is not known, its kind does not fit the operation, a value its type, or the
                budget does not suffice.
            DeadlineError: the deadline of the budget passes.
        """
        reads_offers = any(is_offers(name) for name in columns_of((*filters, *configured)))
        if reads_offers and self.offers is None:
            raise UserError("filters: there are no offers here, so no `offer.` columns")
        listings = self._listings if reads_offers or (self.offers is not None and with_offer) else None
        budget = budget or FilterBudget()
        met = filter_mask(filters, self.items, listings, budget)
        if configured:
            met &= filter_mask(configured, self.items, listings, budget.unlimited())
        if self.offers is None or listings is None:
            return Eligible(met, None)
        listings_G = met
        if with_offer:
            listings_G[len(self.offers.item_rows) :] = False
        rows_R = np.zeros(self.items.num_rows, dtype=bool)
        rows_R[self._listings.row_G[listings_G]] = True
        return Eligible(rows_R, listings_G)

    def best_offers(
        self, rows_C: Int64Array, eligible: Eligible, keys: Sequence[Callable[[Int64Array], Float64Array]]
    ) -> Int64Array:
        """Returns the listing [C] of each item's eligible offer with the smallest key; -1 where it has none.

        Args:
            keys: functions from listings to numbers, the most important first; NaN comes last.
        """
        assert self.offers is not None, "no offers"
        owners, offers = self._offers_of(rows_C)
        if eligible.listings_G is not None:
            owners, offers = owners[eligible.listings_G[offers]], offers[eligible.listings_G[offers]]
        order = np.lexsort((offers, *(key(offers) for key in reversed(keys)), owners))
        owners, first = np.unique(owners[order], return_index=True)
        found_C = np.full(len(rows_C), -1, dtype=np.int64)
        found_C[owners] = offers[order][first]
        return found_C

    def numbers(self, name: str) -> Float64Array:
        """Returns a column of numbers, by listing where it is one of offers, else by item row."""
        columns, column = self._of(name)
        return columns.numbers(column)

    def nearest_in_time(
        self, name: str, from_ms: int, k: int, allowed_R: Mask, listings_G: Mask | None, *, ahead: bool
    ) -> tuple[Int64Array, Float64Array]:
        """Returns the k allowed items whose times are nearest to a given one, and the milliseconds between.

        Of several offers of an item the nearest counts; reads no more of the times than it has to.

        Args:
            from_ms: the given time, milliseconds since the epoch; an item at this time is included.
            ahead: read the times after it rather than those before it.
            listings_G: the eligible listings, where the column is one of offers; None for all.
        """
        columns, column = self._of(name)
        order, times_ms = columns.time_order(column, ahead=ahead), columns.numbers(column)
        sign = 1 if ahead else -1
        start = bisect_left(
            range(len(order)), sign * from_ms, key=lambda position: sign * times_ms[order[position]]
        )
        rows, differences_ms = np.empty(0, dtype=np.int64), np.empty(0)
        for stretch in growing_slices(start, len(order), k):
            part = order[stretch]
            part = part[self._is_allowed(part, name, allowed_R, listings_G)]
            rows = np.concatenate([rows, self._rows(part, name)])
            differences_ms = np.concatenate([differences_ms, sign * (times_ms[part] - from_ms)])
            rows, first = np.unique(rows, return_index=True)  # the first of each in the order of time
            differences_ms = differences_ms[first]
            by_time = np.lexsort((rows, differences_ms))
            rows, differences_ms = rows[by_time], differences_ms[by_time]
            if len(rows) >= k:
                break
        return rows[:k], differences_ms[:k]

    def prepare_time_order(self, name: str, *, ahead: bool) -> None:
        """Sorts a column for `nearest_in_time` now, so that no request waits for it."""
        columns, column = self._of(name)
        columns.time_order(column, ahead=ahead)

    def nearest(
        self, name: str, point: tuple[float, float], k: int, allowed_R: Mask, listings_G: Mask | None
    ) -> tuple[Int64Array, Float64Array]:
        """Returns the k allowed items nearest to a point, and their distances in kilometres.

        Of several offers of an item the nearest counts.

        Args:
            point: latitude and longitude, in degrees.
            listings_G: the eligible listings, where the column is one of offers; None for all.
        """
        columns, column = self._of(name)
        if np.count_nonzero(allowed_R) <= _MAX_FULL_DISTANCES:
            found_F = self._listings_of(np.flatnonzero(allowed_R), name)
            found_F = found_F if listings_G is None else found_F[listings_G[found_F]]
            squares_F = columns.square_chords(column, *point, found_F)
            has_place_F = ~np.isnan(squares_F)
            return _first_distinct(self._rows(found_F[has_place_F], name), squares_F[has_place_F], k)
        for radius_km in _RADII_KM:
            near_F, squares_F = columns.around(column, *point, radius_km)
            allowed_F = self._is_allowed(near_F, name, allowed_R, listings_G)
            rows, distances_km = _first_distinct(self._rows(near_F[allowed_F], name), squares_F[allowed_F], k)
            if len(rows) == k:
                break
        return rows, distances_km

    def within(self, name: str, point: tuple[float, float], radius_km: float, eligible: Eligible) -> Mask:
        """Returns the eligible items [R] that are, or have an eligible offer, within a radius of a point."""
        columns, column = self._of(name)
        found_F, _ = columns.around(column, *point, radius_km)
        allowed_F = self._is_allowed(found_F, name, eligible.rows_R, eligible.listings_G)
        rows_R = np.zeros(self.items.num_rows, dtype=bool)
        rows_R[self._rows(found_F[allowed_F], name)] = True
        return rows_R

    def distances_km(self, name: str, point: tuple[float, float], listings: IntArray) -> Float64Array:
        """Returns the distances of listings from a point, by a column of offers; NaN without a place."""
        columns, column = self._of(name)
        return arc_km(columns.square_chords(column, *point, listings))

    def _of(self, name: str) -> tuple[Columns, str]:
        """Returns the columns that hold a column, and its name there."""
        return (self._listings.columns, name.removeprefix(PREFIX)) if is_offers(name) else (self.items, name)

    def _rows(self, found_F: IntArray, name: str) -> Int64Array:
        """Returns the item rows of what was found by a column."""
        return np.asarray(self._listings.row_G[found_F] if is_offers(name) else found_F, dtype=np.int64)

    def _listings_of(self, rows: Int64Array, name: str) -> Int64Array:
        """Returns the listings of some items for a column of offers, and their rows for another one."""
        return self._offers_of(rows)[1] if is_offers(name) else rows

    def _is_allowed(self, found_F: IntArray, name: str, allowed_R: Mask, listings_G: Mask | None) -> Mask:
        """Returns which of those that were found by a column are allowed."""
        allowed_F = allowed_R[self._rows(found_F, name)]
        return allowed_F & listings_G[found_F] if is_offers(name) and listings_G is not None else allowed_F

    def _offers_of(self, rows_C: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns the offers of some items: the position of the item in `rows_C`, and the listing."""
        listings, offsets_C1 = gather_ragged(self._starts_R[rows_C], self._starts_R[rows_C + 1])
        return np.repeat(np.arange(len(rows_C)), np.diff(offsets_C1)), listings

    def require(self, name: str, kinds: Sequence[str], where: str) -> None:
        """Checks that a column exists and has one of some kinds.

        Args:
            where: names the setting, for messages.

        Raises:
            UserError: it does not.
        """
        if is_offers(name) and self.offers is None:
            raise UserError(f"{where}: {name!r} is a column of offers, and there are none")
        known = self._listings.columns.kinds if is_offers(name) else self.items.kinds
        kind = known.get(name.removeprefix(PREFIX) if is_offers(name) else name)
        if kind not in kinds:
            fitting = ", ".join(sorted(other for other, other_kind in known.items() if other_kind in kinds))
            raise UserError(
                f"{where}: column {name!r} is {kind or 'not known'}; "
                f"of {' and '.join(kinds)} there are {fitting or 'none'}"
            )

    def offer_ids(self) -> pa.Array:
        """Returns the ids of the offers, by listing."""
        assert self.offers is not None, "no offers"
        return self.offers.table.column(OFFER_ID)
