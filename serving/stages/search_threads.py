"""The threads in which long searches run, while other requests are answered."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from passerelle.machine import usable_cores

T = TypeVar("T")
HEAVY_WORK, HEAVY_CONDITIONS = 5_000_000, 8
"""Filters of more expected work than this, and than so many visits of every row, are heavy."""
MAX_REST_S = 0.2


@dataclass
class _Heavy:
    """What is known of a heavy search while it waits."""

    wanted: bool = True
    started: bool = False


class SearchThreads:
    """A bounded number of threads; a search that nobody waits for any more does not start.

    Heavy searches take turns in a thread of their own, so that they do not hold up the others.

    Args:
        max_threads: threads for searches that are not heavy.
    """

    def __init__(self, max_threads: int | None = None) -> None:
        self.max_threads = max_threads or max(4, usable_cores())
        self._light = ThreadPoolExecutor(self.max_threads, thread_name_prefix="search")
        self._turns = ThreadPoolExecutor(1, thread_name_prefix="heavy-search")
        self._abandoned: dict[Future[Any], _Heavy] = {}
        self._rests_until_s = 0.0

    @property
    def num_abandoned(self) -> int:
        """Number of searches that still run though their request has ended; they use a core."""
        self._abandoned = {future: heavy for future, heavy in self._abandoned.items() if future.running()}
        return sum(heavy.started for heavy in self._abandoned.values())

    async def run(self, search: Callable[[], T], *, is_heavy: bool = False) -> T:
        """Runs a search in a thread."""
        run, heavy = contextvars.copy_context().run, _Heavy(started=not is_heavy)
        if is_heavy:
            future = self._turns.submit(self._after_a_rest, run, search, heavy)
        else:
            future = self._light.submit(run, search)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            heavy.wanted = False
            if future.running():
                self._abandoned[future] = heavy
            raise

    def _after_a_rest(self, run: Callable[[Callable[[], T]], T], search: Callable[[], T], heavy: _Heavy) -> T:
        """Runs a heavy search; the next one waits as long as this one took, within limits.

        So heavy searches take about half of a core.
        """
        time.sleep(max(0.0, self._rests_until_s - time.monotonic()))
        if not heavy.wanted:
            raise asyncio.CancelledError
        heavy.started, begun_s = True, time.monotonic()
        try:
            return run(search)
        finally:
            ended_s = time.monotonic()
            self._rests_until_s = ended_s + min(MAX_REST_S, ended_s - begun_s)
