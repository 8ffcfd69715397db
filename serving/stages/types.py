"""The values that the stages pass to each other, and the interface of each stage.

Shape legend: L history length, S seen items, D vector width, C candidates, K found by one source.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from passerelle.arrays import Float32Array, Int64Array
from passerelle.bundle import History
from serving.config import Playlist
from serving.schemas.base import ExternalId
from serving.schemas.recommend import Item, RecommendRequest, SimilarRequest

POPULAR = "popular"
PERSONAL = "personal"
SIMILAR = "similar"
PINNED = "pinned"

ENCODER_DOWN, RANKER_DOWN, EVENTS_DOWN = "query_encoder", "ranker", "events"
"""Components whose failure a degraded answer names."""


@dataclass(frozen=True)
class RequestTime:
    """The time of a request, read once by the recommender and passed to every stage in any process."""

    timestamp_ms: int
    """Time of the request, milliseconds since the epoch: the one that its context gives, else `now_ms`."""
    now_ms: int
    """Wall clock of the service when the request arrived, milliseconds since the epoch."""

    @classmethod
    def read(cls, timestamp_ms: int | None) -> "RequestTime":
        """Reads the clock.

        Args:
            timestamp_ms: the time that the request gives, if it gives one.
        """
        now_ms = time.time_ns() // 1_000_000
        return cls(now_ms if timestamp_ms is None else timestamp_ms, now_ms)


@dataclass(frozen=True)
class Query:
    """Result of the lookup: a user's history and the query vector."""

    history_L: Int64Array
    """Item rows the query was made from, oldest first, at most `max_history`."""
    seen_S: Int64Array
    """Item rows to leave out of the answer."""
    query_D: Float32Array | None
    """None when too little is known of the user, or the network does not answer."""
    ignored_history: int
    encode_ms: float
    degraded: tuple[str, ...] = ()
    """Components that failed and were left out: `query_encoder`, `events`."""
    pseudonym: str | None = None
    """Stands for the user in the log."""


@dataclass(frozen=True)
class Found:
    """Items of one source, best first: an item's rank is its index + 1."""

    source: str
    rows_K: Int64Array
    scores_K: Float32Array


@dataclass(frozen=True)
class Candidates:
    """Items of all sources, each item once."""

    rows_C: Int64Array
    scores_C: Float32Array
    """Inner products with the query, best first; without a query, scores of the item's first source."""
    found: tuple[Found, ...]
    mixed: bool = False
    """Items of several sources are interleaved: the order of `rows_C` counts, not the scores."""
    fallback: str | None = None
    """Names the sources of an answer that is not personal."""
    offers: tuple[dict[str, Any] | None, ...] | None = None
    """[C] the best offer of each; None where there are no offers."""
    num_found: int | None = None
    """Number of candidates that sources found.
    Those after them fill the answer up, and come last whatever their scores."""


class Stage(Protocol):
    """A stage in this process, or the proxy of one in another process."""

    async def ready(self) -> bool:
        """Returns whether the stage can answer in full."""


class LookupStage(Stage, Protocol):
    """From a request to the history of its user and a query vector."""

    async def run(self, request: RecommendRequest, request_time: RequestTime, timeout_s: float) -> Query: ...

    async def history(self, user_id: ExternalId, limit: int) -> History: ...


class RetrievalStage(Stage, Protocol):
    """From a query to candidates, and from item rows to similar items."""

    @property
    def num_abandoned(self) -> int:
        """Number of searches of this process that still run though their request has ended."""

    async def run(
        self,
        request: RecommendRequest,
        query: Query,
        request_time: RequestTime,
        playlist: Playlist,
        timeout_s: float,
    ) -> Candidates: ...

    async def similar(
        self,
        request: SimilarRequest,
        rows: Sequence[int],
        k: int,
        request_time: RequestTime,
        timeout_s: float,
    ) -> Candidates: ...


class RankingStage(Stage, Protocol):
    """From candidates to one score for each."""

    async def run(
        self, query: Query, candidates: Candidates, request_time: RequestTime, timeout_s: float
    ) -> Float32Array: ...


class OrderingStage(Stage, Protocol):
    """From scored candidates to the items of the answer."""

    async def run(
        self,
        candidates: Candidates,
        scores_C: Float32Array,
        k: int,
        request_time: RequestTime,
        playlist: str | None = None,
        *,
        debug: bool = False,
    ) -> tuple[Item, ...]: ...


@dataclass(frozen=True)
class Stages:
    """The four stages of a request."""

    lookup: LookupStage
    retrieval: RetrievalStage
    ranking: RankingStage
    ordering: OrderingStage

    def all(self) -> tuple[Stage, ...]:
        """Returns the stages in the order of a request."""
        return self.lookup, self.retrieval, self.ranking, self.ordering
