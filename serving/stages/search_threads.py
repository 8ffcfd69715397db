"""The threads in which long searches run, while other requests are answered."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
HEAVY_WORK = 5_000_000
"""Searches with more expected work take turns in one thread, so that they do not hold up the others."""
MAX_THREADS = 4


class SearchThreads:
    """A bounded number of threads; a search that nobody waits for any more does not start.

    Args:
        max_threads: threads for searches that are not heavy.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._light = ThreadPoolExecutor(max_threads, thread_name_prefix="search")
        self._heavy = ThreadPoolExecutor(1, thread_name_prefix="heavy-search")
        self._abandoned: set[Future[Any]] = set()
        self._rests_until_s = 0.0

    @property
    def num_abandoned(self) -> int:
        """Number of searches that still run though their request has ended; they use a core."""
        self._abandoned = {future for future in self._abandoned if future.running()}
        return len(self._abandoned)

    async def run(self, search: Callable[[], T], expected_work: int) -> T:
        """Runs a search in a thread."""
        run = contextvars.copy_context().run
        if expected_work > HEAVY_WORK:
            future = self._heavy.submit(self._after_a_rest, run, search)
        else:
            future = self._light.submit(run, search)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.running():
                self._abandoned.add(future)
            raise

    def _after_a_rest(self, run: Callable[[Callable[[], T]], T], search: Callable[[], T]) -> T:
        """Runs a heavy search; the next one waits as long as this one took.

        So heavy searches take at most half of a core.
        """
        time.sleep(max(0.0, self._rests_until_s - time.monotonic()))
        begun_s = time.monotonic()
        try:
            return run(search)
        finally:
            ended_s = time.monotonic()
            self._rests_until_s = ended_s + (ended_s - begun_s)
