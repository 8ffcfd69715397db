"""Event stores: one behaviour for SQLite and a real Redis server; what was acknowledged survives."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passerelle.calendar_time import HOUR_MS
from passerelle.config import validate
from passerelle.errors import UserError
from serving.config import LiveEventsConfig, ServingConfig
from serving.events.base import EventStore, EventStoreError, user_digest
from serving.events.intake import open_store
from serving.events.sqlite_store import SqliteEventStore
from tests.support.stores import DURABLE, event, needs_redis, new_user, start_redis, with_store
from tests.support.waiting import eventually_async, slow_answer


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=needs_redis)])
def open_one(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], EventStore]]:
    """Opens a store; all that it opens hold the same events."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield lambda: SqliteEventStore(folder / "events.sqlite")
        return
    server, url = start_redis(folder, *DURABLE)
    try:
        yield lambda: open_store(LiveEventsConfig(store=url))  # type: ignore[return-value]
    finally:
        server.terminate()
        server.wait()


def test_events_come_back_in_the_order_of_time_once_each(open_one: Callable[[], EventStore]) -> None:
    user = new_user()

    async def work(store: EventStore) -> None:
        assert (await store.user(user, 10)).events == ()
        assert (
            await store.append(
                [event(user, "b", 20, "8"), event(user, "a", 10, "商品"), event(user, "b", 30)]
            )
            == 2
        )
        assert await store.append([event(user, "a", 99), event(user, "c", 15)]) == 1
        assert [(one.item_id, one.timestamp_ms) for one in (await store.user(user, 10)).events] == [
            ("商品", 10),
            ("7", 15),
            ("8", 20),
        ]
        assert [one.timestamp_ms for one in (await store.user(user, 2)).events] == [15, 20]
        other = new_user()
        assert await store.append([event(other, "a")]) == 1, "an event id is its user's"

    with_store(open_one, work)
    assert len(with_store(open_one, lambda store: store.user(user, 10)).events) == 3, (
        "another process sees them"
    )


def test_many_writers_at_once(open_one: Callable[[], EventStore]) -> None:
    user = new_user()

    async def work(store: EventStore) -> None:
        added = await asyncio.gather(
            *(store.append([event(user, str(number % 50), number)]) for number in range(200))
        )
        assert sum(added) == 50 and len((await store.user(user, 1000)).events) == 50

    with_store(open_one, work)


def test_what_is_erased_is_gone_and_remembered_as_erased(open_one: Callable[[], EventStore]) -> None:
    user, other = new_user(), new_user()

    async def work(store: EventStore) -> None:
        await store.append([event(user, "a"), event(user, "b"), event(other, "a")])
        await store.assign_pseudonym(user, "nobody", 0)
        await store.assign_pseudonym(user, "somebody else", 0)
        assert (await store.user(user, 10)).pseudonym == "nobody"
        assert await store.erase(user) == 2
        state = await store.user(user, 10)
        assert state.events == () and state.pseudonym is None and state.erased
        assert len((await store.user(other, 10)).events) == 1 and not (await store.user(other, 10)).erased
        assert await store.erase(user) == 0
        await store.append([event(user, "a", 70)])
        assert [one.timestamp_ms for one in (await store.user(user, 10)).events] == [70]

    with_store(open_one, work)


def test_pseudonym_chosen_before_an_erasure_is_not_kept(open_one: Callable[[], EventStore]) -> None:
    user = new_user()

    async def work(store: EventStore) -> None:
        for erasures in range(3):
            before = await store.user(user, 10)
            assert before.erasures == erasures
            await store.erase(user)
            await store.assign_pseudonym(user, "in lines of the log already", before.erasures)
            after = await store.user(user, 10)
            assert after.pseudonym is None
            await store.assign_pseudonym(user, f"new {erasures}", after.erasures)
            assert (await store.user(user, 10)).pseudonym == f"new {erasures}"
        assert store.erased_here == {user_digest(user)}

    with_store(open_one, work)


def test_events_of_many_users_at_once(open_one: Callable[[], EventStore]) -> None:
    users = [new_user() for _ in range(200)]
    events = [event(user, name, time) for name, time in (("a", 10), ("b", 20)) for user in users]

    async def work(store: EventStore) -> None:
        assert await store.append(events[:100]) == 100 and await store.append(events) == 300
        assert {len((await store.user(user, 10)).events) for user in users} == {2}

    with_store(open_one, work)


def test_events_are_counted_by_hour_and_item(open_one: Callable[[], EventStore]) -> None:
    one, other = new_user(), new_user()
    noon = 1000 * HOUR_MS

    async def work(store: EventStore) -> None:
        first = [
            event(one, "a", noon, "商品"),
            event(one, "b", noon + HOUR_MS - 1, "商品"),
            event(one, "c", noon, "8"),
        ]
        await store.append(
            [
                *first,
                event(one, "a", noon, "商品"),
                event(other, "a", noon, "商品"),
                event(other, "b", noon + HOUR_MS, "8"),
            ]
        )
        await store.append(first)
        assert sorted(await store.hourly(1000, 1001)) == [(1000, "8", 1), (1000, "商品", 3), (1001, "8", 1)]
        assert await store.hourly(1001, 1001) == [(1001, "8", 1)] and await store.hourly(998, 999) == []
        await store.erase(one)
        assert sorted(await store.hourly(1000, 1001)) == [(1000, "商品", 1), (1001, "8", 1)]

    with_store(open_one, work)


def test_who_is_erased_can_be_listed(open_one: Callable[[], EventStore]) -> None:
    user, other = new_user(), new_user()

    async def work(store: EventStore) -> frozenset[str]:
        await store.append([event(other, "a")])
        await store.erase(user)
        return await store.erased()

    erased = with_store(open_one, work)
    assert user_digest(user) in erased and user_digest(other) not in erased


def test_many_processes_open_a_new_file_at_once(tmp_path: Path) -> None:
    imports = "import sys; from pathlib import Path; from serving.events.sqlite_store import SqliteEventStore"
    code = f"{imports}; SqliteEventStore(Path(sys.argv[1]))"
    for number in range(3):
        command = [sys.executable, "-c", code, str(tmp_path / f"{number}.sqlite")]
        opening = [subprocess.Popen(command, cwd=Path(__file__).parents[3]) for _ in range(6)]
        assert [process.wait() for process in opening] == [0] * 6


def test_erased_text_is_not_in_the_files_of_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"

    async def work(store: EventStore) -> None:
        await store.append([event("a secret name", "an event id", item_id="a secret item")])
        await store.erase("a secret name")

    with_store(lambda: SqliteEventStore(path), work)
    for file in tmp_path.iterdir():
        assert b"a secret" not in file.read_bytes(), file


def test_old_events_are_deleted_when_the_file_is_opened_and_then_every_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now_ms = tmp_path / "events.sqlite", int(1e3 * time.time())
    old_ms = now_ms - 3 * 86_400_000
    opened = SqliteEventStore(path)
    aged = [event(f"u{number % 7}", str(number), old_ms + number, "old") for number in range(2500)]
    asyncio.run(opened.append([*aged, event("u1", "new", now_ms - 86_400_000)]))
    asyncio.run(opened.close())

    async def left(store: EventStore, count: int) -> None:
        async def as_many() -> bool:
            states = [await store.user(f"u{number}", 1000) for number in range(7)]
            return sum(len(state.events) for state in states) == count

        await eventually_async(as_many, "not pruned")

    async def work(store: EventStore) -> None:
        await left(store, 1)
        assert await store.hourly(old_ms // HOUR_MS, now_ms // HOUR_MS) == [
            ((now_ms - 86_400_000) // HOUR_MS, "7", 1)
        ]
        assert await store.append([event("u2", "late", old_ms)]) == 1
        await slow_answer(0.1)
        await left(store, 2)

    def open_kept(keep_days: float | None) -> SqliteEventStore:
        store = open_store(LiveEventsConfig(file=path, keep_days=keep_days))
        assert isinstance(store, SqliteEventStore)
        return store

    with_store(lambda: open_kept(None), lambda store: left(store, 2501))
    with_store(lambda: open_kept(2), work)
    monkeypatch.setattr("serving.events.sqlite_store.PRUNE_INTERVAL_S", 0.05)

    async def again(store: EventStore) -> None:
        await left(store, 1)
        await store.append([event("u2", "late again", old_ms)])
        await left(store, 1)  # though nobody writes

    with_store(lambda: open_kept(2), again)


def test_deleting_old_events_does_not_disturb_those_who_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.sqlite"

    async def work(store: EventStore) -> None:
        await store.ping()
        blocker = sqlite3.connect(path)
        blocker.execute(
            "CREATE TRIGGER never BEFORE DELETE ON events BEGIN SELECT RAISE(FAIL, 'not now'); END"
        )
        blocker.close()
        assert await store.append([event("u", "old")]) == 1
        await store.close()

    async def look(store: EventStore) -> None:
        assert await store.append([event("u", "new", int(1e3 * time.time()))]) == 1

    asyncio.run(work(SqliteEventStore(path)))
    with_store(lambda: SqliteEventStore(path, keep_days=1.5), look)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "events older than 1.5 days are not deleted yet (not now)"
    ]


def test_a_locked_file_is_said_and_then_used_again(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"

    async def work(store: EventStore) -> None:
        await store.append([event("u", "a")])
        blocker = sqlite3.connect(path)
        blocker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EventStoreError, match="locked"):
            await store.append([event("u", "b")])
        assert len((await store.user("u", 10)).events) == 1, "readers do not wait"
        blocker.execute("ROLLBACK")
        blocker.close()
        assert await store.append([event("u", "b")]) == 1

    with_store(lambda: SqliteEventStore(path, timeout_s=0.1), work)


def test_stores_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "no.sqlite"
    path.write_text(
        "this is no database, but a text that is long enough to be told from an empty file", encoding="utf-8"
    )
    with pytest.raises(UserError, match="not a usable event store"):
        SqliteEventStore(path)
    with pytest.raises(UserError, match=r"events.store: 'mysql' is none of sqlite, none, redis://"):
        open_store(LiveEventsConfig(store="mysql"))
    assert open_store(LiveEventsConfig(store="none")) is None
    with pytest.raises(UserError, match=r'events: events.file is of store = "sqlite"'):
        validate(
            ServingConfig,
            {"events": {"store": "redis://127.0.0.1:6379/0", "file": "events.sqlite"}},
            "serving.toml",
        )


_WRITER = """
import asyncio, sys
from pathlib import Path
from serving.config import LiveEventsConfig
from serving.events.base import Event
from serving.events.intake import open_store

async def main():
    store = open_store(LiveEventsConfig(store=sys.argv[1], file=Path(sys.argv[2])))
    async def one(lane):
        number = 0
        while True:
            name = f"{sys.argv[3]}-{lane}-{number}"
            await store.append([Event(name, "u", "7", "view", number)])
            print(name, flush=True)
            number += 1
    await asyncio.gather(*(one(lane) for lane in range(4)))

asyncio.run(main())
"""


def killed_writers(tmp_path: Path, times: int) -> None:
    """Processes that write and are killed at moments of chance: whatever they said was kept is there."""
    path = tmp_path / "events.sqlite"
    acknowledged: set[str] = set()
    for attempt in range(times):
        command = [sys.executable, "-c", _WRITER, "sqlite", str(path), str(attempt)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        assert writer.stdout is not None
        first = [writer.stdout.readline() for _ in range(1 + attempt % 40)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged |= {line.strip() for line in (*first, *writer.stdout) if line.endswith("\n")}
        writer.wait()
        writer.stdout.close()
    kept = {row[0] for row in sqlite3.connect(path).execute("SELECT event_id FROM events")}
    assert len(acknowledged) >= times and acknowledged <= kept


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    killed_writers(tmp_path, 15)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_survives_kill_9_a_thousand_times(tmp_path: Path) -> None:
    killed_writers(tmp_path, 1000)
