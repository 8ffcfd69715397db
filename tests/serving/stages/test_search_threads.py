"""Threads of searches: bounded, in two lanes, and nothing starts that nobody waits for."""

import asyncio
import threading
import time

import pytest

from serving.stages.search_threads import SearchThreads
from tests.support.waiting import eventually_async, slow_answer, slow_call


class Blocked:
    """Searches that run until they are released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.running = 0
        self.started = 0
        self._lock = threading.Lock()

    def search(self) -> int:
        with self._lock:
            self.running += 1
            self.started += 1
        assert self.released.wait(60)
        with self._lock:
            self.running -= 1
        return 5


def test_searches_are_bounded_and_heavy_ones_take_turns() -> None:
    async def run() -> None:
        threads, light, heavy = SearchThreads(), Blocked(), Blocked()
        try:
            waiting = [asyncio.ensure_future(threads.run(heavy.search, is_heavy=True)) for _ in range(3)]
            waiting += [
                asyncio.ensure_future(threads.run(light.search)) for _ in range(2 * threads.max_threads)
            ]
            await eventually_async(lambda: (heavy.running, light.running) == (1, threads.max_threads))
            assert threads.num_abandoned == 0
        finally:
            light.released.set()
            heavy.released.set()
        assert await asyncio.gather(*waiting) == [5] * len(waiting)

    asyncio.run(run())


def test_abandoned_searches_count_until_they_end_and_waiting_ones_never_start() -> None:
    async def run() -> None:
        threads, blocked = SearchThreads(), Blocked()
        await threads.run(lambda: slow_call(0.05), is_heavy=True)  # so that the next ones rest at first
        first, second = (asyncio.ensure_future(threads.run(blocked.search, is_heavy=True)) for _ in range(2))
        try:
            await eventually_async(lambda: blocked.running == 1)
            for search in (first, second):
                search.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await search
            assert threads.num_abandoned == 1
        finally:
            blocked.released.set()
        await eventually_async(lambda: threads.num_abandoned == 0)
        assert await threads.run(lambda: 7, is_heavy=True) == 7
        assert blocked.started == 1

    asyncio.run(run())


def test_a_heavy_search_is_followed_by_a_rest_as_long() -> None:
    ended_s: list[float] = []

    def search() -> float:
        begun_s = time.monotonic()
        slow_call(0.1)
        ended_s.append(time.monotonic())
        return begun_s

    async def run() -> list[float]:
        threads = SearchThreads()
        return [await threads.run(search, is_heavy=True) for _ in range(3)]

    begun_s = asyncio.run(run())
    for begun, ended, next_begun in zip(begun_s, ended_s, begun_s[1:], strict=False):
        assert next_begun - ended >= ended - begun


def test_a_resting_search_that_is_abandoned_neither_counts_nor_starts() -> None:
    started: list[int] = []

    async def run() -> None:
        threads = SearchThreads()
        await threads.run(lambda: slow_call(0.15), is_heavy=True)
        resting = asyncio.ensure_future(threads.run(lambda: started.append(1), is_heavy=True))
        await slow_answer(0)
        resting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resting
        assert threads.num_abandoned == 0
        await threads.run(lambda: None, is_heavy=True)

    asyncio.run(run())
    assert started == []


def test_errors_of_a_search_reach_its_request() -> None:
    def fail() -> None:
        raise ValueError("of the search")

    with pytest.raises(ValueError, match="of the search"):
        asyncio.run(SearchThreads().run(fail))
