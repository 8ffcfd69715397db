"""The history of a request: the one that it gives, or the one of the bundle and the user's events since.

Shape legend: L history length.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from passerelle.arrays import Int64Array
from passerelle.bundle import Bundle, History
from passerelle.event_types import event_type_codes
from passerelle.id_map import UNKNOWN_ROW, Id, parsed, parsed_or_none
from passerelle.ids import FIRST_ITEM_ROW
from serving.config import ServingConfig
from serving.events.base import (
    EMPTY_USER,
    Event,
    EventStore,
    EventStoreError,
    UserState,
    new_pseudonym,
)
from serving.events.erasure_list import ErasureList
from serving.schemas.recommend import RecommendRequest
from serving.stages.types import EVENTS_DOWN, RequestTime

ASSUMED_GAP_MS = 60_000
NO_HISTORY = History(*(np.empty(0, dtype=np.int64) for _ in History._fields))

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UserHistory:
    """The history that a request is answered from."""

    history: History
    user_row: int
    """Row of the user in the bundle; `UNKNOWN_ROW` for an unknown or erased user."""
    ignored: int
    """Number of given ids that are unknown."""
    given: bool
    """The history is the request's own."""
    pseudonym: str | None
    degraded: tuple[str, ...]


class UserHistories:
    """Reads histories from the bundle and the event store.

    Args:
        bundle: id maps and stored histories.
        config: how long the event store may take, and whether answers are logged.
        events: live events; None where they are not kept.
    """

    def __init__(self, bundle: Bundle, config: ServingConfig, events: EventStore | None) -> None:
        self._bundle = bundle
        self._config = config.events
        self._assigns_pseudonyms = config.log.file is not None
        self._events = events
        self._erased = None if events is None else ErasureList(events)
        self._background: set[asyncio.Task[None]] = set()

    async def of_request(
        self, request: RecommendRequest, request_time: RequestTime, timeout_s: float
    ) -> UserHistory:
        """Returns the history that the request gives, else that of its user.

        Args:
            timeout_s: for the event store.

        Raises:
            UserError: an id is not of the bundle's type, or there is no such event type.
        """
        if request.history is None:
            return await self.of_user(request.user_id, timeout_s)
        user_row, state, degraded = await self._user(request.user_id, timeout_s)
        history, ignored = self._given(request, request_time)
        return UserHistory(history, user_row, ignored, True, state.pseudonym, degraded)

    async def of_user(self, user_id: Id | None, timeout_s: float) -> UserHistory:
        """Returns the history of the bundle and the events since; an empty one for an unknown user.

        Raises:
            UserError: the id is not of the type of this bundle's users.
        """
        user_row, state, degraded = await self._user(user_id, timeout_s)
        stored = self._bundle.history(user_row) if user_row != UNKNOWN_ROW else NO_HISTORY
        return UserHistory(self._with_events(stored, state), user_row, 0, False, state.pseudonym, degraded)

    async def _user(self, user_id: Id | None, timeout_s: float) -> tuple[int, UserState, tuple[str, ...]]:
        """Returns the row of a user, the state in the event store, and the components that failed."""
        if user_id is None:
            return UNKNOWN_ROW, EMPTY_USER, ()
        known_id = parsed(self._bundle.user_ids, user_id, "user_id")
        user_row = self._bundle.user_ids.row(known_id)
        state, degraded = await self._state(str(known_id), timeout_s)
        return UNKNOWN_ROW if state.erased else user_row, state, degraded

    async def _state(self, user_id: str, timeout_s: float) -> tuple[UserState, tuple[str, ...]]:
        """Returns a user's state in the event store, and `EVENTS_DOWN` where the store does not answer."""
        if self._events is None or self._erased is None:
            return EMPTY_USER, ()
        self._erased.start_refreshing()
        try:
            state = await asyncio.wait_for(
                self._events.user(user_id, self._config.keep_per_user),
                min(timeout_s, self._config.timeout_ms / 1e3),
            )
        except (EventStoreError, TimeoutError) as error:
            logger.warning("answering without events: %s", str(error) or "the store took too long")
            # An erased user stays erased while the store is away.
            return UserState(erasures=int(self._erased.may_contain(user_id))), (EVENTS_DOWN,)
        if state.pseudonym is None and self._assigns_pseudonyms:
            state = replace(state, pseudonym=(pseudonym := new_pseudonym()))
            self._in_background(_assign_pseudonym(self._events, user_id, pseudonym, state.erasures))
        return state, ()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _with_events(self, stored: History, state: UserState) -> History:
        """Returns a history with the events that it lacks, in the order of time.

        Events of items and types that this bundle does not know are left out.
        """
        if not state.events:
            return stored
        names, item_ids = self._bundle.manifest.event_types, self._bundle.item_ids
        # An older bundle may have been made without some of the events.
        present = set(zip(*(values_L.tolist() for values_L in stored), strict=True))
        known: list[tuple[Id, Event]] = []
        for event in state.events:
            # An id that cannot be parsed is one of a bundle with ids of another type.
            item_id = parsed_or_none(item_ids, event.item_id) if event.event_type in names else None
            if item_id is not None:
                known.append((item_id, event))
        rows = item_ids.rows([item_id for item_id, _ in known]).tolist()
        events = [
            (row, event.timestamp_ms, names.index(event.event_type))
            for row, (_, event) in zip(rows, known, strict=True)
        ]
        new = [event for event in events if event[0] >= FIRST_ITEM_ROW and event not in present]
        new_columns = np.array(new, dtype=np.int64).reshape(-1, len(History._fields)).T
        both = History(
            *(np.concatenate([before, after]) for before, after in zip(stored, new_columns, strict=True))
        )
        order = np.argsort(both.timestamps_ms_L, kind="stable")
        return History(*(values_L[order] for values_L in both))

    def _given(self, request: RecommendRequest, request_time: RequestTime) -> tuple[History, int]:
        """Returns the known items of the request's history, and the number of unknown ids."""
        assert request.history is not None, "no history given"
        item_ids = self._bundle.item_ids
        rows_L = item_ids.rows(
            [parsed(item_ids, item_id, f"history.{i}") for i, item_id in enumerate(request.history)]
        )
        if request.history_timestamps_ms is None:
            times_ms_L = request_time.timestamp_ms - ASSUMED_GAP_MS * np.arange(len(rows_L), 0, -1)
        else:
            times_ms_L = np.array(request.history_timestamps_ms, dtype=np.int64)
        known_L = rows_L >= FIRST_ITEM_ROW
        given = History(rows_L, times_ms_L, self._event_types(request, len(rows_L)))
        return History(*(values_L[known_L] for values_L in given)), int(np.count_nonzero(~known_L))

    def _event_types(self, request: RecommendRequest, length: int) -> Int64Array:
        """Returns the codes of the given event types; zeros, the first event type, where none are given."""
        if request.history_event_types is None:
            return np.zeros(length, dtype=np.int64)
        names = self._bundle.manifest.event_types
        return event_type_codes(request.history_event_types, names, "history_event_types")


async def _assign_pseudonym(events: EventStore, user_id: str, pseudonym: str, erasures: int) -> None:
    # Where this fails, the next request of the user gets another pseudonym in the log.
    with contextlib.suppress(EventStoreError):
        await events.assign_pseudonym(user_id, pseudonym, erasures)
