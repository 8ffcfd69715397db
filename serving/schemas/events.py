"""Bodies of `/v1/events` and of erasures."""

from typing import Annotated

from pydantic import Field, StrictStr, model_validator

from passerelle.config import Config
from serving.schemas.base import ExternalId, RequestModel, Several, TimestampMs

MAX_EVENTS = 1000
EventId = Annotated[StrictStr, Field(min_length=1, max_length=128)]


class EventIn(RequestModel):
    """One event of a user."""

    event_id: EventId
    """Chosen by the sender: an event that is sent again is kept once."""
    user_id: ExternalId
    item_id: ExternalId
    """May be unknown to this version; a later one may know it."""
    event_type: StrictStr | None = None
    """One of the event types of the model; the first of them, if absent."""
    timestamp_ms: TimestampMs | None = None
    """Milliseconds since the epoch; the time of arrival, if absent."""


class EventsRequest(RequestModel):
    """One event, with its fields at the top, or several in `events`."""

    events: Several[EventIn] = Field(default=(), max_length=MAX_EVENTS)
    event_id: EventId | None = None
    user_id: ExternalId | None = None
    item_id: ExternalId | None = None
    event_type: StrictStr | None = None
    timestamp_ms: TimestampMs | None = None

    @model_validator(mode="after")
    def _one_or_several(self) -> "EventsRequest":
        single = (self.event_id, self.user_id, self.item_id)
        if self.events and any(value is not None for value in (*single, self.event_type, self.timestamp_ms)):
            raise ValueError("give either events or the fields of one event")
        if not self.events and None in single:
            raise ValueError("an event has event_id, user_id and item_id")
        return self

    def all_events(self) -> tuple[EventIn, ...]:
        """Returns the events, also of a request for a single one."""
        if self.events or self.event_id is None or self.user_id is None or self.item_id is None:
            return self.events
        return (
            EventIn(
                event_id=self.event_id,
                user_id=self.user_id,
                item_id=self.item_id,
                event_type=self.event_type,
                timestamp_ms=self.timestamp_ms,
            ),
        )


class EventsResponse(Config):
    """Numbers of new and of known events."""

    accepted: int
    duplicates: int
    """Events whose id was kept already."""


class ForgottenResponse(Config):
    """Number of erased events."""

    events: int
