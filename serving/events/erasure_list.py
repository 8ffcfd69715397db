"""The erased users, as this process last read them: for the time when the event store is away."""

import asyncio
import contextlib

from serving.events.base import EventStore, EventStoreError, user_digest

REFRESH_INTERVAL_S = 2.0
"""Pause between two readings.

An erasure is known after one reading in progress, the pause and one more reading.
With a store that takes a second for each, that is within five seconds.
"""
PAGE_SIZE = 100_000


class ErasureList:
    """Reads the erased users of any process in the background; each reading takes only the new ones.

    Args:
        store: remembers erased users.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._digests: set[str] = set()
        self._position = 0
        self._is_read = False
        self._refreshing: asyncio.Task[None] | None = None

    def start_refreshing(self) -> None:
        """Starts to read in the background, unless that goes on already."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())

    def may_contain(self, user_id: str) -> bool:
        """Returns whether the user is erased; True for every user before the first reading has ended."""
        digest = user_digest(user_id)
        return not self._is_read or digest in self._digests or digest in self._store.erased_here

    async def _refresh(self) -> None:
        while True:
            with contextlib.suppress(EventStoreError):
                await self._read()
            await asyncio.sleep(REFRESH_INTERVAL_S)

    async def _read(self) -> None:
        while True:
            page = await self._store.erased_after(self._position, PAGE_SIZE)
            self._digests.update(page.digests)
            self._position = page.position
            if page.is_last:
                self._is_read = True
                return
