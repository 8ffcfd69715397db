"""Sources of candidates that a playlist may name: one model a kind, told apart by `kind`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from passerelle.config import Config
from passerelle.dataset import FeatureKind


class SourceBase(Config):
    """Settings that every source has."""

    kind: str
    candidates: int | None = Field(default=None, ge=1, le=10_000)
    """Maximum number of candidates; as many as the ranker was trained to order, if absent."""

    def columns(self) -> Iterator[tuple[str, tuple[FeatureKind, ...]]]:
        """Yields every column that the source reads, with the kinds that the column may have."""
        yield from ()


class TimestampSource(SourceBase):
    """A source that orders items by a timestamp."""

    column: str
    """A timestamp."""

    def columns(self) -> Iterator[tuple[str, tuple[FeatureKind, ...]]]:
        """Yields the timestamp."""
        yield self.column, ("timestamp",)


class PersonalSource(SourceBase):
    """Items with the largest inner products with the query vector of the user."""

    kind: Literal["personal"] = "personal"


class SimilarSource(SourceBase):
    """Items most similar to those that the request names, or to the newest of the history."""

    kind: Literal["similar"] = "similar"
    last: int = Field(default=3, ge=1, le=100)
    """Number of newest items of the history that are taken where the request names none."""


class PopularSource(SourceBase):
    """Items with the most events."""

    kind: Literal["popular"] = "popular"
    column: str | None = None
    """A place; goes with `radius_km`."""
    radius_km: float | None = Field(default=None, gt=0, le=20_038)
    """Only items within this distance of the place in the request's context, where it has one."""

    @model_validator(mode="after")
    def _radius_and_column_go_together(self) -> "PopularSource":
        if self.radius_km is not None and self.column is None:
            raise ValueError("a source 'popular' with radius_km needs a column")
        if self.radius_km is None and self.column is not None:
            raise ValueError("column has no effect on a source 'popular' without radius_km")
        return self

    def columns(self) -> Iterator[tuple[str, tuple[FeatureKind, ...]]]:
        """Yields the place, if there is one."""
        if self.column is not None:
            yield self.column, ("place",)


class TrendingSource(SourceBase):
    """Items with the most recent events."""

    kind: Literal["trending"] = "trending"
    half_life_days: float = Field(default=7.0, gt=0)
    """An event counts half as much after so many days."""


class NewSource(TimestampSource):
    """Items with the latest timestamps that are not in the future."""

    kind: Literal["new"] = "new"


class SoonSource(TimestampSource):
    """Items with the earliest timestamps that are not past."""

    kind: Literal["soon"] = "soon"


class NearSource(SourceBase):
    """Items nearest to the place in the request's context; none where it has no place."""

    kind: Literal["near"] = "near"
    column: str
    """A place."""

    def columns(self) -> Iterator[tuple[str, tuple[FeatureKind, ...]]]:
        """Yields the place."""
        yield self.column, ("place",)


SOURCE_MODELS: dict[str, type[SourceBase]] = {
    "personal": PersonalSource,
    "similar": SimilarSource,
    "popular": PopularSource,
    "trending": TrendingSource,
    "new": NewSource,
    "soon": SoonSource,
    "near": NearSource,
}
CandidateSource = Annotated[
    PersonalSource | SimilarSource | PopularSource | TrendingSource | NewSource | SoonSource | NearSource,
    Field(discriminator="kind"),
]
SourceList = Annotated[tuple[CandidateSource, ...], Field(min_length=1, max_length=20)]
