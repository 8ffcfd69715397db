"""What a playlist may say of the order of its items. All of it is off unless it is said."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from passerelle.config import Config
from passerelle.dataset import FeatureKind
from serving.schemas.filters import Filter

GROUP_KINDS: tuple[FeatureKind, ...] = ("categorical",)
NUMBER_KINDS: tuple[FeatureKind, ...] = ("numeric",)


class Mixing(Config):
    """Categories in turns, the ranker's order kept within each."""

    column: str
    """A category of items, or of the offers that are shown (`offer.NAME`)."""
    window: int = Field(default=5, ge=2, le=1000)
    """Among so many items in a row ..."""
    most: int = Field(default=2, ge=1, le=1000)
    """... at most so many of one category, as long as others are left."""


class Mmr(Config):
    """Maximal marginal relevance (Carbonell and Goldstein 1998): each place goes to the item that is best and least like those above it."""

    relevance: float = Field(default=0.7, ge=0, le=1)
    """1 keeps the ranker's order; 0 looks at unlikeness alone (cosine of item vectors)."""


class Boost(Config):
    """A factor on the score of the items that meet a condition. Scores are first brought to 0..1 over the candidates."""

    name: str = Field(min_length=1, max_length=64)
    """What a debug answer calls it."""
    when: Filter
    """A condition on columns of items."""
    factor: float = Field(gt=0, le=100)
    """Above 1 lifts, below 1 lowers."""


class Cap(Config):
    """At most so many items of one value, a seller for instance."""

    column: str
    """A category of items, or of the offers that are shown (`offer.seller`)."""
    most: int = Field(ge=1)
    """Of one value in an answer; what comes after them is left out."""


class Pin(Config):
    """An item that stands in a place, where hard rules and filters allow it."""

    item_id: StrictInt | StrictStr
    """Of the catalogue."""
    place: Annotated[int, Field(ge=1, le=1000)]
    """From 1."""


class OrderingConfig(Config):
    """How candidates become the items of an answer, in this order: boosts and margin, then caps, then mixing or MMR, then pins."""

    boosts: tuple[Boost, ...] = Field(default=(), max_length=50)
    """Factors on scores."""
    margin_column: str | None = None
    """A number of items, or of the offers that are shown (`offer.NAME`), that the score (brought to 0..1) is multiplied by; one without it
    has a margin of 0."""
    margin_power: StrictFloat | StrictInt = Field(default=1.0, ge=0, le=10)
    """Of the margin: 0 ignores it, 1 is the expected margin."""
    caps: tuple[Cap, ...] = Field(default=(), max_length=10)
    """Of sellers, for instance."""
    diversify: Literal["mixing", "mmr"] | None = None
    """Categories in turns, or marginal relevance; the order as it is, if absent."""
    mixing: Mixing | None = None
    """Goes with `diversify = "mixing"`."""
    mmr: Mmr = Mmr()
    """Goes with `diversify = "mmr"`."""
    pins: tuple[Pin, ...] = Field(default=(), max_length=100)
    """Items that stand in places of their own."""
    keep_seen_pins: StrictBool = False
    """Pinned items stand there even for those who have seen them."""

    @model_validator(mode="after")
    def _has_what_it_diversifies_by(self) -> "OrderingConfig":
        if (self.diversify == "mixing") != (self.mixing is not None):
            raise ValueError("diversify = 'mixing' and [mixing] go together")
        if self.diversify != "mmr" and self.mmr != Mmr():
            raise ValueError("[mmr] has no effect without diversify = 'mmr'")
        if self.margin_column is None and self.margin_power != 1:
            raise ValueError("margin_power has no effect without a margin_column")
        if len({pin.place for pin in self.pins}) < len(self.pins) or len(
            {pin.item_id for pin in self.pins}
        ) < len(self.pins):
            raise ValueError("two pins share an item or a place")
        return self

    def columns(self) -> Iterator[tuple[str, tuple[FeatureKind, ...], str]]:
        """Every column that is named but in conditions, what kinds it may be of, and where it is named."""
        yield from ((cap.column, GROUP_KINDS, "caps") for cap in self.caps)
        if self.mixing is not None:
            yield self.mixing.column, GROUP_KINDS, "mixing"
        if self.margin_column is not None:
            yield self.margin_column, NUMBER_KINDS, "margin_column"
