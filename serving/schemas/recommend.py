"""Bodies of requests for items and of their answers.

Ids are the caller's own, text or whole numbers.
"""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictStr,
    field_validator,
    model_validator,
)

from passerelle.config import Config
from passerelle.errors import UserError
from serving.schemas.base import MAX_K, AnswerId, ExternalId, RequestModel, Several, TimestampMs, whole_number
from serving.schemas.filters import Filter, require_few

MAX_HISTORY_ITEMS = 100_000

Features = Annotated[dict[str, JsonValue], Field(max_length=1000)]
if TYPE_CHECKING:
    Count = int
    Age = int
else:
    Count, Age = whole_number(1, MAX_K), whole_number(0, 150)
MIN_DEADLINE_MS = 50
"""A shorter time does not suffice for an answer whenever the machine does something else, too."""


class ConflictError(UserError):
    """Fields of a request contradict each other: HTTP 409."""


class Place(RequestModel):
    """A point on the Earth, in degrees."""

    latitude: Annotated[StrictFloat, Field(ge=-90, le=90)]
    longitude: Annotated[StrictFloat, Field(ge=-180, le=180)]


class Context(RequestModel):
    """Context of a request."""

    timestamp_ms: TimestampMs | None = None
    """Milliseconds since the epoch; now, if absent."""
    features: Features | None = None
    """Context features that the model reads, by name; absent ones are missing values."""
    place: Place | None = None
    """Location of the user, for sources and offers that depend on distance."""
    age: Age | None = None
    """Age in years: items with a higher minimum are left out, where the service has such a rule.
    Without an age, all items that have a minimum are left out."""
    credit: Annotated[StrictFloat, Field(ge=0, le=1e15)] | None = None
    """Available credit: more expensive items are left out, where the service has such a rule."""


class ItemsRequest(RequestModel):
    """Fields of every request for items."""

    k: Count | None = None
    """Number of items of the answer; if absent, the size of the playlist, and 10 for similar items."""
    deadline_ms: Annotated[StrictFloat, Field(ge=MIN_DEADLINE_MS, le=60_000)] | None = None
    """Time for the answer: a recommendation leaves out what is not done by then.
    Where there are no candidates by then, the answer is 503."""
    context: Context = Context()
    filters: Several[Filter] = Field(default=(), max_length=100)
    """Trees of conditions on item columns; all must hold.
    The answer has fewer than `k` items when fewer meet them."""

    @field_validator("filters", mode="before")
    @classmethod
    def _are_few(cls, given: Any) -> Any:
        require_few(given)
        return given


class RecommendRequest(ItemsRequest):
    """Who to recommend to, and from what.

    Users without enough events get the sources of the rule for cold users: popular items, by default.
    """

    user_id: ExternalId | None = None
    history: Several[ExternalId] | None = Field(default=None, max_length=MAX_HISTORY_ITEMS)
    """Item ids, oldest first, instead of the stored history of `user_id`.
    Unknown ids are counted and ignored."""
    history_timestamps_ms: Several[TimestampMs] | None = None
    """Time of each event of `history`, milliseconds since the epoch; if absent, a minute apart."""
    history_event_types: Several[StrictStr] | None = None
    """Event type of each event of `history`; if absent, the first event type that the model knows."""
    user_features: Features | None = None
    """Features of the user that the model reads, by name, instead of the stored features of `user_id`."""
    playlist: StrictStr = "default"
    """Which of the service's playlists: its filters, sources and ordering."""
    variant: StrictStr | None = None
    """A variant of the playlist's experiment, instead of the one that the user belongs to."""
    similar_to: Several[ExternalId] = Field(default=(), max_length=100)
    """Items that the source `similar` starts from, instead of the newest of the history."""
    debug: StrictBool = False
    """Explain the position of each item."""
    exclude_seen: StrictBool = True
    """Leave out the items of the history (of a model for bookings: those that were booked)."""

    def require_one_value_an_item(self) -> None:
        """Checks what no schema can say: the lists that belong to the history are as long.

        Raises:
            ConflictError: one is not.
        """
        for name, values in (
            ("history_timestamps_ms", self.history_timestamps_ms),
            ("history_event_types", self.history_event_types),
        ):
            if values is not None and len(values) != len(self.history or ()):
                raise ConflictError(
                    f"{name} has {len(values)} values for the {len(self.history or ())} items of history"
                )


class SimilarRequest(ItemsRequest):
    """An item, or several items together, to find neighbours of."""

    item_id: ExternalId | None = None
    item_ids: Several[ExternalId] = Field(default=(), max_length=100)

    @model_validator(mode="after")
    def _names_items(self) -> Self:
        if (self.item_id is None) == (not self.item_ids):
            raise ValueError("give either item_id or item_ids")
        return self


class Source(Config):
    """A source that found an item: `rank` from 1, and `score` in the source's own unit."""

    name: str
    rank: int
    score: float


class Offer(Config):
    """The best of an item's offers that meet the filters."""

    offer_id: AnswerId
    distance_km: float | None
    """From the place in the request's context."""
    values: dict[str, Any]
    """The other columns; timestamps in milliseconds since the epoch."""


class Why(Config):
    """Explains the position of an item."""

    position_by_score: int
    """Position by the ranker's score alone, from 1."""
    retrieval_score: float
    """Inner product with the query; without a query, the score of the source that put the item first."""
    adjusted_score: float
    """After boosts and margin."""
    boosts: tuple[str, ...]
    margin: float | None
    diversified_by: str | None
    pinned: bool


class Item(Config):
    """One item of an answer: `rank` from 1; `score` is the ranker's, or the source's where no ranker ran."""

    item_id: AnswerId
    rank: int
    score: float
    sources: tuple[Source, ...]
    offer: Offer | None = None
    """The offer that is shown, where items are sold as offers."""
    why: Why | None = None
    """The explanation of a debug answer."""


class Timings(Config):
    """Milliseconds spent in each stage, and in all of them together."""

    lookup: float
    encode: float
    retrieval: float
    ranking: float
    ordering: float
    total: float


class RecommendResponse(Config):
    """The answer to a `RecommendRequest`."""

    request_id: str
    model_version: int
    """Version of the model repository that answered."""
    items: tuple[Item, ...]
    fallback: str | None
    """The sources of an answer that is not personal (`popular`, or `near+popular`, ...); null if it is."""
    degraded: tuple[str, ...]
    """Components that failed: `query_encoder`, `ranker` (items stand in the order of retrieval), `events`."""
    playlist: str
    experiment: str | None
    """The experiment that the request took part in."""
    variant: str | None
    ignored_history: int
    """Number of ids of the given history that are not in the catalogue."""
    timings_ms: Timings


class SimilarResponse(Config):
    """The answer to a `SimilarRequest`; `score` is the cosine of the two items' vectors."""

    request_id: str
    model_version: int
    items: tuple[Item, ...]


class ItemResponse(Config):
    """The catalogue's description of one item."""

    item_id: AnswerId
    title: str | None
    features: dict[str, Any]
    """Every item feature of the bundle; a missing value is null."""


class HistoryEvent(Config):
    """One known event of a user."""

    item_id: AnswerId
    title: str | None
    event_type: str
    timestamp_ms: int


class HistoryResponse(Config):
    """The known events of a user, the newest first."""

    events: tuple[HistoryEvent, ...]


class Problem(Config):
    """One error in a request: its location, and a message."""

    loc: tuple[str | int, ...]
    msg: str


class Problems(Config):
    """The body of every answer that is not a success."""

    detail: tuple[Problem, ...]
