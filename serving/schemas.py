"""What the HTTP interface takes and gives. Ids are the caller's own, text or whole numbers."""

import time
from typing import Annotated, Any

from pydantic import Field, JsonValue, StrictBool, StrictInt, StrictStr, model_validator

from passerelle.config import Config
from serving.filters import MOST_CONDITIONS, Filter, count_conditions

MAX_K = 10_000
MAX_HISTORY_ITEMS = 100_000
LATEST_TIMESTAMP_MS = 253_402_300_799_999  # the year 9999: a larger number is in microseconds or nanoseconds

ExternalId = StrictInt | StrictStr
Features = Annotated[dict[str, JsonValue], Field(max_length=1000)]
Count = Annotated[StrictInt, Field(ge=1, le=MAX_K)]


class Context(Config):
    """The circumstances of a request."""

    timestamp_ms: Annotated[StrictInt, Field(ge=0, le=LATEST_TIMESTAMP_MS)] | None = None
    """Milliseconds since the epoch; now, when absent."""
    features: Features | None = None
    """Circumstances that the model reads, by name; what is absent is missing."""


class RecommendRequest(Config):
    """Who to recommend to, and what. Without `user_id` and `history` the answer is the most popular items."""

    user_id: ExternalId | None = None
    history: tuple[ExternalId, ...] | None = Field(default=None, max_length=MAX_HISTORY_ITEMS)
    """Item ids, oldest first; takes the place of what is stored for `user_id`. Unknown ids are counted and ignored."""
    history_timestamps_ms: tuple[Annotated[StrictInt, Field(ge=0, le=LATEST_TIMESTAMP_MS)], ...] | None = None
    """When each item of `history` happened, milliseconds since the epoch; a minute apart, up to the request, when absent."""
    history_event_types: tuple[StrictStr, ...] | None = None
    """What each event of `history` was; the first kind that the model knows, when absent."""
    user_features: Features | None = None
    """Features of the user that the model reads, by name; takes the place of what is stored for `user_id`."""
    k: Count = 10
    exclude_seen: StrictBool = True
    """Leave out the items of the history (of a model for bookings: those that were booked)."""
    context: Context = Context()
    filters: tuple[Filter, ...] = Field(default=(), max_length=100)
    """Trees of conditions on item columns; all must hold. Fewer than `k` items come back when fewer meet them."""

    @model_validator(mode="after")
    def _one_value_an_item(self) -> "RecommendRequest":
        for name, values in (("history_timestamps_ms", self.history_timestamps_ms), ("history_event_types", self.history_event_types)):
            if values is not None and len(values) != len(self.history or ()):
                raise ValueError(f"{name} has {len(values)} values for the {len(self.history or ())} items of history")
        return self

    @model_validator(mode="after")
    def _no_forest(self) -> "RecommendRequest":
        if (count := count_conditions(self.filters)) > MOST_CONDITIONS:
            raise ValueError(f"filters has {count} conditions, at most {MOST_CONDITIONS} are possible")
        return self

    def timestamp_ms(self) -> int:
        """The time of the request: now, unless the context says otherwise."""
        given = self.context.timestamp_ms
        return time.time_ns() // 1_000_000 if given is None else given


class SimilarRequest(Config):
    """Which item to find neighbours of."""

    item_id: ExternalId
    k: Count = 10


class Source(Config):
    """Which retriever found an item, and what it thought of it: `rank` from 1, `score` in the retriever's own unit."""

    name: str
    rank: int
    score: float


class Item(Config):
    """One answer, best first: `rank` from 1; `score` is the ranker's, or the source's where no ranker ran."""

    item_id: ExternalId
    rank: int
    score: float
    sources: tuple[Source, ...]


class Timings(Config):
    """Milliseconds spent in each stage; `total` holds them all."""

    lookup: float
    encode: float
    retrieval: float
    ranking: float
    total: float


class RecommendResponse(Config):
    """The answer to a `RecommendRequest`."""

    request_id: str
    model_version: int
    """Version of the model repository that answered."""
    items: tuple[Item, ...]
    fallback: str | None
    """`popularity` when nothing is known of the user, else null."""
    ignored_history: int
    """Ids of the given history that are not in the catalogue."""
    timings_ms: Timings


class SimilarResponse(Config):
    """The answer to a `SimilarRequest`; `score` is the cosine of the two items' vectors."""

    request_id: str
    model_version: int
    items: tuple[Item, ...]


class ItemResponse(Config):
    """What the catalogue says of one item."""

    item_id: ExternalId
    title: str | None
    features: dict[str, Any]
    """Every item feature of the bundle; a missing value is null."""


class Problem(Config):
    """One thing that is wrong with a request: where, and what."""

    loc: tuple[str | int, ...]
    msg: str


class Problems(Config):
    """The body of every answer that is not a success."""

    detail: tuple[Problem, ...]
