"""How soon every process knows an erased user, also with a slow store and many erasures."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from passerelle.bundle import Bundle
from serving.events import erasure_list
from serving.events.base import ErasedUsers, EventStoreError, user_digest
from serving.events.erasure_list import ErasureList
from serving.events.sqlite_store import SqliteEventStore
from serving.schemas.recommend import RecommendRequest
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference
from tests.support.waiting import eventually_async, slow_answer


class Slow:
    """Passes on to a store, after a while; counts the readings of erasures."""

    def __init__(self, store: SqliteEventStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self.erased_here = store.erased_here
        self.begun = 0
        self.ended = 0
        self.fails = False
        self.positions: list[int] = []

    async def user(self, *arguments: Any) -> Any:
        await slow_answer(self._seconds)
        return await self._store.user(*arguments)

    async def erased_after(self, position: int, limit: int) -> ErasedUsers:
        self.begun += 1
        self.positions.append(position)
        found = await self._store.erased_after(position, limit)
        await slow_answer(self._seconds)
        self.ended += 1
        if self.fails:
            raise EventStoreError("gone")
        return found


Work = Callable[[ErasureList, Slow, SqliteEventStore], Awaitable[None]]


def with_list(tmp_path: Path, work: Work, seconds: float = 0.0) -> None:
    """Runs `work` with the list of one process and the store of another one, over the same file."""

    async def run() -> None:
        ours, theirs = (SqliteEventStore(tmp_path / "events.sqlite") for _ in range(2))
        slow = Slow(ours, seconds)
        try:
            await work(ErasureList(slow), slow, theirs)  # type: ignore[arg-type]
        finally:
            await ours.close()
            await theirs.close()

    asyncio.run(run())


def test_a_reading_that_begins_after_an_erasure_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure_list, "REFRESH_INTERVAL_S", 0.01)

    async def work(erased: ErasureList, slow: Slow, theirs: SqliteEventStore) -> None:
        await theirs.erase("first")
        assert erased.may_contain("anybody"), "nothing is known before the first reading"
        erased.start_refreshing()
        erased.start_refreshing()
        await eventually_async(lambda: not erased.may_contain("anybody"))
        assert erased.may_contain("first")
        for user in ("second", "third"):
            await theirs.erase(user)
            before = slow.begun
            await eventually_async(lambda before=before: slow.ended > before)
            assert erased.may_contain(user) and erased.may_contain("first")
        assert not erased.may_contain("anybody")

    with_list(tmp_path, work)


def test_failures_leave_the_list_and_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_list, "REFRESH_INTERVAL_S", 0.01)

    async def work(erased: ErasureList, slow: Slow, theirs: SqliteEventStore) -> None:
        slow.fails = True
        erased.start_refreshing()
        await eventually_async(lambda: slow.ended > 3)
        assert erased.may_contain("anybody"), "no reading has ended"
        slow.fails = False
        await eventually_async(lambda: not erased.may_contain("anybody"))
        slow.fails = True
        await theirs.erase("user")
        await eventually_async(lambda: slow.ended > 8)
        assert not erased.may_contain("anybody")
        slow.fails = False
        await eventually_async(lambda: erased.may_contain("user"))

    with_list(tmp_path, work)


def test_a_long_list_is_read_in_pages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_list, "REFRESH_INTERVAL_S", 0.01)
    monkeypatch.setattr(erasure_list, "PAGE_SIZE", 10)
    users = [f"user {number}" for number in range(35)]

    async def work(erased: ErasureList, slow: Slow, theirs: SqliteEventStore) -> None:
        for user in users:
            await theirs.erase(user)
        erased.start_refreshing()
        await eventually_async(lambda: not erased.may_contain("anybody"))
        assert slow.ended == 4 and all(map(erased.may_contain, users))
        begun = slow.begun
        await eventually_async(lambda: slow.begun > begun + 3)
        assert slow.positions[:4] == [0, 10, 20, 30]
        assert set(slow.positions[4:]) == {35}, "the new erasures only"

    with_list(tmp_path, work)


def test_a_store_that_is_always_too_slow_still_tells_erased_users(bundle: Bundle, tmp_path: Path) -> None:
    """Requests do not wait for it, and users who are not erased get their recommendations."""

    async def run() -> None:
        store = SqliteEventStore(tmp_path / "events.sqlite")
        await store.erase("1001")
        store.erased_here.clear()
        slow: Any = Slow(store, 0.5)
        recommender = recommender_of(bundle, OnnxInference(bundle), 7, events=slow)

        async def fallback(user_id: int) -> str | None:
            answer = await recommender.recommend(RecommendRequest(user_id=user_id, deadline_ms=5000))
            assert answer.degraded == ("events",)
            return answer.fallback

        assert await fallback(1000) == "popular"
        await eventually_async(lambda: slow.ended)

        async def is_personal() -> bool:
            return await fallback(1000) is None

        await eventually_async(is_personal)
        assert await fallback(1001) == "popular"
        await store.close()

    asyncio.run(run())


def test_erasures_of_earlier_versions_of_the_file_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE erasures (user_digest TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID"
        )
        connection.executemany("INSERT INTO erasures VALUES (?, 1)", [("a",), ("b",)])

    async def run() -> list[tuple[str, ...]]:
        stores = [SqliteEventStore(path) for _ in range(2)]
        await stores[0].erase("new")
        found = [(await store.erased_after(0, 100)).digests for store in stores]
        for store in stores:
            await store.close()
        return found

    assert asyncio.run(run()) == [("a", "b", user_digest("new"))] * 2


@pytest.mark.slow
def test_an_erasure_among_a_million_is_known_within_five_seconds(tmp_path: Path) -> None:
    """With a store that takes a second for each reading."""

    async def work(erased: ErasureList, _: Slow, theirs: SqliteEventStore) -> None:
        with sqlite3.connect(tmp_path / "events.sqlite") as connection:
            connection.executemany(
                "INSERT INTO erasures VALUES (?, 1)", ((user_digest(str(one)),) for one in range(1_000_000))
            )
        erased.start_refreshing()
        await eventually_async(lambda: not erased.may_contain("anybody"))
        assert erased.may_contain("0") and erased.may_contain("999999")
        durations_s = []
        for number in range(8):
            # at different moments of the reading and the pause
            await slow_answer(0.4 * number)
            begun_s = time.monotonic()
            await theirs.erase(f"user {number}")
            await eventually_async(lambda number=number: erased.may_contain(f"user {number}"))
            durations_s.append(time.monotonic() - begun_s)
        assert max(durations_s) < 5, durations_s

    with_list(tmp_path, work, seconds=1.0)
