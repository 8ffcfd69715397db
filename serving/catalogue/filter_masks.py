"""Evaluation of filter trees to masks over items, or over listings.

A listing is what a condition on columns of offers is applied to: every offer, then every item that has none.
Shape legend: R item rows (special rows included), G listings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passerelle.arrays import Int64Array
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.columns import Columns, Mask
from serving.catalogue.filter_budget import CONDITION_WORK, FilterBudget
from serving.catalogue.offers import PREFIX, is_offers
from serving.schemas.filters import And, Filter, Leaf, Not, Or, Overlaps, Within

_GROUPED_AT_ONCE = 8
"""A mask is negated or combined so many rows in the time of one visit."""


@dataclass(frozen=True)
class Listings:
    """The columns of offers by listing, and the item row of each listing."""

    columns: Columns
    row_G: Int64Array


def filter_mask(
    filters: Sequence[Filter], items: Columns, listings: Listings | None, budget: FilterBudget
) -> Mask:
    """Returns the item rows [R] that meet every filter; with listings, the listings [G] that do.

    Args:
        listings: needed where a filter reads columns of offers.
        budget: work that the filters may do.

    Raises:
        UserError: a column is not known, its kind does not fit the operation, a value has another type, or
            the budget does not suffice.
        DeadlineError: the deadline of the budget passes.
    """
    if listings is None:
        mask = np.ones(items.num_rows, dtype=bool)
        mask[:FIRST_ITEM_ROW] = False
    else:
        mask = np.ones(len(listings.row_G), dtype=bool)
    for position, condition in enumerate(filters):
        mask &= _tree_mask(condition, f"filters.{position}", items, listings, budget)
    return mask


def _tree_mask(
    condition: Filter, path: str, items: Columns, listings: Listings | None, budget: FilterBudget
) -> Mask:
    num_rows = items.num_rows if listings is None else len(listings.row_G)
    budget.spend(CONDITION_WORK + num_rows // _GROUPED_AT_ONCE, path)
    if isinstance(condition, Not):
        return ~_tree_mask(condition.condition, f"{path}.condition", items, listings, budget)
    if isinstance(condition, And | Or):
        masks = (
            _tree_mask(part, f"{path}.conditions.{index}", items, listings, budget)
            for index, part in enumerate(condition.conditions)
        )
        combine = np.logical_and if isinstance(condition, And) else np.logical_or
        mask = next(masks)
        for other in masks:
            combine(mask, other, out=mask)
        return mask
    if not any(map(is_offers, condition.columns())):
        mask_R = items.mask(condition, path, budget)
        if listings is None:
            return mask_R
        budget.spend(len(listings.row_G), path)
        return mask_R[listings.row_G]
    assert listings is not None, "a column of offers without offers"
    return _listing_mask(condition, path, items, listings, budget)


def _listing_mask(
    condition: Leaf, path: str, items: Columns, listings: Listings, budget: FilterBudget
) -> Mask:
    """Returns the listings [G] that meet a condition on columns of offers."""
    if isinstance(condition, Overlaps):
        if not (is_offers(condition.start) and is_offers(condition.end)):
            raise UserError(
                f"{path}: one of columns {condition.start!r} and {condition.end!r} is of offers, "
                "the other of items"
            )
        ends = {"start": condition.start.removeprefix(PREFIX), "end": condition.end.removeprefix(PREFIX)}
        return listings.columns.mask(condition.model_copy(update=ends), path, budget)
    plain = condition.model_copy(update={"column": condition.column.removeprefix(PREFIX)})
    if not isinstance(plain, Within) or plain.radius_by is None:
        return listings.columns.mask(plain, path, budget)
    if not is_offers(condition.column):
        raise UserError(f"{path}: the place is of items, and the column that radii go by of offers")
    by = plain.radius_by
    if is_offers(by.column):
        own = by.model_copy(update={"column": by.column.removeprefix(PREFIX)})
        return listings.columns.mask(plain.model_copy(update={"radius_by": own}), path, budget)
    angles_R = items.angles(plain.radius_km, by, f"{path}.radius_by", budget)
    budget.spend(len(listings.row_G), path)
    return listings.columns.within(plain, path, angles_R[listings.row_G], budget)
