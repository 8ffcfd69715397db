"""The ordering section of a playlist, in which every option is off by default."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from passerelle.config import Config
from passerelle.dataset import FeatureKind
from serving.schemas.filters import Filter

GROUP_KINDS: tuple[FeatureKind, ...] = ("categorical",)
NUMBER_KINDS: tuple[FeatureKind, ...] = ("numeric",)


class Mixing(Config):
    """Interleaves categories; the ranker's order is kept within each."""

    column: str
    """A category of items, or of the offers that are shown (`offer.NAME`)."""
    window: int = Field(default=5, ge=2, le=1000)
    """Number of consecutive items that `max_items` applies to."""
    max_items: int = Field(default=2, ge=1, le=1000)
    """Maximum number of items of one category in a window, as long as others are left."""


class Mmr(Config):
    """Maximal marginal relevance (Carbonell and Goldstein 1998).

    Each position gets the item with the best balance of its score and its dissimilarity to those above.
    """

    relevance: float = Field(default=0.7, ge=0, le=1)
    """1 keeps the ranker's order; 0 looks at dissimilarity alone (cosine of item vectors)."""


class Boost(Config):
    """A factor on the score of the items that meet a condition.

    Scores are first scaled to 0..1 over the candidates.
    """

    name: str = Field(min_length=1, max_length=64)
    """Name of the boost in debug answers."""
    when: Filter
    """A condition on columns of items."""
    factor: float = Field(gt=0, le=100)
    """Above 1 raises the score, below 1 lowers it."""


class Cap(Config):
    """A limit on the items of one value, a seller for instance."""

    column: str
    """A category of items, or of the offers that are shown (`offer.seller`)."""
    max_items: int = Field(ge=1)
    """Maximum number of items of one value in an answer; further ones are left out."""


class Pin(Config):
    """An item with a fixed position, where eligibility rules and filters allow it."""

    item_id: StrictInt | StrictStr
    """An item of the catalogue."""
    position: Annotated[int, Field(ge=1, le=1000)]
    """Position in the answer, from 1."""


class OrderingConfig(Config):
    """How candidates become the items of an answer.

    In this order: boosts and margin, then caps, then mixing or MMR, then pins.
    """

    boosts: tuple[Boost, ...] = Field(default=(), max_length=50)
    """Factors on scores."""
    margin_column: str | None = None
    """A numeric column of items, or of the offers that are shown (`offer.NAME`).
    The score (scaled to 0..1) is multiplied by its value.
    An item without it has a margin of 0."""
    margin_power: StrictFloat | StrictInt = Field(default=1.0, ge=0, le=10)
    """Exponent of the margin: 0 ignores it, 1 is the expected margin."""
    caps: tuple[Cap, ...] = Field(default=(), max_length=10)
    """Limits on the items of one value."""
    diversify: Literal["mixing", "mmr"] | None = None
    """Interleaved categories, or marginal relevance; the order as it is, if absent."""
    mixing: Mixing | None = None
    """Options of `diversify = "mixing"`."""
    mmr: Mmr = Mmr()
    """Options of `diversify = "mmr"`."""
    pins: tuple[Pin, ...] = Field(default=(), max_length=100)
    """Items with fixed positions."""
    keep_seen_pins: StrictBool = False
    """Pinned items stand there even for users who have seen them."""

    @model_validator(mode="after")
    def _options_fit_together(self) -> "OrderingConfig":
        if (self.diversify == "mixing") != (self.mixing is not None):
            raise ValueError("diversify = 'mixing' and [mixing] go together")
        if self.diversify != "mmr" and self.mmr != Mmr():
            raise ValueError("[mmr] has no effect without diversify = 'mmr'")
        if self.margin_column is None and self.margin_power != 1:
            raise ValueError("margin_power has no effect without a margin_column")
        positions, item_ids = {pin.position for pin in self.pins}, {pin.item_id for pin in self.pins}
        if len(positions) < len(self.pins) or len(item_ids) < len(self.pins):
            raise ValueError("two pins share an item or a position")
        return self

    def columns(self) -> Iterator[tuple[str, tuple[FeatureKind, ...], str]]:
        """Yields the columns outside of conditions, their possible kinds, and the options that name them."""
        yield from ((cap.column, GROUP_KINDS, "caps") for cap in self.caps)
        if self.mixing is not None:
            yield self.mixing.column, GROUP_KINDS, "mixing"
        if self.margin_column is not None:
            yield self.margin_column, NUMBER_KINDS, "margin_column"
