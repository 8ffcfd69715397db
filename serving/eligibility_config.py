"""Configuration of what may be recommended: eligibility rules, and the offers that items are sold as."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from passerelle.config import Config


class Rules(Config):
    """Eligibility rules, which hold for every source, playlist, fallback and pin."""

    min_age_column: str | None = None
    """Items with a minimum age above the age in the request's context are left out.

    Without an age in the context, all items with a minimum age above 0 are left out.
    """
    price_column: str | None = None
    """Items that cost more than the credit in the request's context are left out; none without a credit."""
    stock_column: str | None = None
    """Items of which none is left are left out."""
    ends_column: str | None = None
    """A timestamp: items that have ended are left out.

    The time is that of the service, or that of the request where it is later.
    """
    block_list: Path | None = None
    """A text file, an item id a line: these items are neither recommended nor returned as similar.

    It is read again within 5 s after it changes.
    A file that is missing at the start is an error.
    If it goes missing later, its last content stays in force.
    """


class Offers(Config):
    """Items are sold as offers, each with a place, a price and dates.

    An item appears once in an answer, with the best of its offers that meet the filters.
    """

    file: Path
    """Parquet file with the columns `offer_id` and `item_id`, read again soon after it changes.

    Its other columns hold numbers, text, lists of text, timestamps, or structs of `latitude` and `longitude`.
    """
    best_by: Literal["nearest", "cheapest"] = "cheapest"
    """Which of several offers an answer carries.

    `nearest` falls back to the cheapest where the request names no place.
    """
    place_column: str | None = None
    """Column that `nearest` reads, without `offer.`."""
    price_column: str | None = None
    """Column that `cheapest` reads, without `offer.`."""
    required: bool = False
    """Leave out items without an offer that meets the filters, even if no filter reads columns of offers."""

    @model_validator(mode="after")
    def _has_its_columns(self) -> "Offers":
        if self.best_by == "nearest" and self.place_column is None:
            raise ValueError("best_by = 'nearest' needs a place_column")
        return self
