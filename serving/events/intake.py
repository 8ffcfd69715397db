"""Intake of events over HTTP, and the choice of their store."""

import asyncio

from passerelle.bundle import Bundle
from passerelle.errors import UserError
from passerelle.event_types import event_type_codes
from passerelle.id_map import Id, parsed
from serving.config import LiveEventsConfig
from serving.events.base import Event, EventStore, EventStoreError
from serving.events.sqlite_store import SqliteEventStore
from serving.schemas.events import EventsRequest, EventsResponse, ForgottenResponse

WRITE_TIMEOUT_S = 1.0


def open_store(config: LiveEventsConfig) -> EventStore | None:
    """Returns the store that a serving file names; None where events are not kept.

    Raises:
        UserError: the store cannot be opened, or its type is unknown.
    """
    if config.store == "none":
        return None
    if config.store == "sqlite":
        if config.file is None:
            raise UserError("events.file: say where, or store = 'none'")
        return SqliteEventStore(config.file, keep_days=config.keep_days)
    if config.store.startswith(("redis://", "rediss://", "unix://")):
        # The client of Redis is an extra.
        from serving.events.redis_store import RedisEventStore

        return RedisEventStore(config.store, keep_days=config.keep_days)
    raise UserError(f"events.store: {config.store!r} is none of sqlite, none, redis://HOST:PORT/DB")


class EventIntake:
    """Checks events against a bundle and keeps them.

    Args:
        bundle: the types of ids, and the event types.
        store: keeps the events.
    """

    def __init__(self, bundle: Bundle, store: EventStore) -> None:
        self._bundle = bundle
        self.store = store

    async def accept(self, request: EventsRequest, now_ms: int) -> EventsResponse:
        """Keeps events; when this returns they survive a crash.

        An event that is kept already does not count again, so that unacknowledged events may be sent again.

        Raises:
            UserError: an id is of the wrong type, or there is no such event type.
            EventStoreError: the events could not be kept.
        """
        names = self._bundle.manifest.event_types
        events = []
        for i, event in enumerate(request.all_events()):
            event_type = names[0] if event.event_type is None else event.event_type
            event_type_codes([event_type], names, f"events.{i}.event_type")
            user_id = str(parsed(self._bundle.user_ids, event.user_id, f"events.{i}.user_id"))
            item_id = str(parsed(self._bundle.item_ids, event.item_id, f"events.{i}.item_id"))
            timestamp_ms = now_ms if event.timestamp_ms is None else event.timestamp_ms
            events.append(Event(event.event_id, user_id, item_id, event_type, timestamp_ms))
        try:
            new = await asyncio.wait_for(self.store.append(events), WRITE_TIMEOUT_S)
        except TimeoutError:
            raise EventStoreError("events were not kept in time: send them again") from None
        return EventsResponse(accepted=new, duplicates=len(events) - new)

    async def forget(self, user_id: Id) -> ForgottenResponse:
        """Erases a user: live events and pseudonym are deleted, and the history in the bundle is ignored.

        Raises:
            UserError: the id is of the wrong type.
            EventStoreError: the store could not erase the user.
        """
        return ForgottenResponse(
            events=await self.store.erase(str(parsed(self._bundle.user_ids, user_id, "user_id")))
        )
