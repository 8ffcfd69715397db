"""Event stores: one behaviour for SQLite and a real Redis server; what was acknowledged survives."""

import asyncio
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from passerelle.errors import UserError
from serving.config import LiveEventsConfig
from serving.events.base import HOUR_MS, Event, EventStore, EventStoreError, user_digest
from serving.events.intake import open_store
from serving.events.sqlite_store import SqliteEventStore
from serving.ports import free_ports

REDIS = shutil.which("redis-server") or shutil.which("valkey-server")
needs_redis = pytest.mark.skipif(REDIS is None, reason="no redis-server here: apt-get install redis-server")
_users = itertools.count()


def start_redis(folder: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """A real server on loopback, and its address, once it answers."""
    (port,) = free_ports(1)
    assert REDIS is not None
    server = subprocess.Popen(
        [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options], stdout=subprocess.DEVNULL
    )
    url = f"redis://127.0.0.1:{port}/0"
    wait_for(url)
    return server, url


def wait_for(url: str) -> None:
    async def answers() -> bool:
        store = open_store(LiveEventsConfig(store=url))
        assert store is not None
        try:
            await store.ping()
        except EventStoreError:
            return False
        finally:
            await store.close()
        return True

    until = time.monotonic() + 10
    while not asyncio.run(answers()):
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.05)


DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=needs_redis)])
def open_one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], EventStore]]:
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


def event(user_id: str, event_id: str, timestamp_ms: int = 5, item_id: str = "7") -> Event:
    return Event(event_id, user_id, item_id, "view", timestamp_ms)


def new_user() -> str:
    return f"user № {next(_users)}"


def with_store(open_one: Callable[[], EventStore], work: Callable[[EventStore], Any]) -> Any:
    async def main() -> Any:
        store = open_one()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


def test_events_come_back_in_the_order_of_time_once_each(open_one: Callable[[], EventStore]) -> None:
    user = new_user()

    async def work(store: EventStore) -> None:
        assert (await store.user(user, 10)).events == ()
        assert await store.append([event(user, "b", 20, "8"), event(user, "a", 10, "商品"), event(user, "b", 30)]) == 2
        assert await store.append([event(user, "a", 99), event(user, "c", 15)]) == 1
        assert [(one.item_id, one.timestamp_ms) for one in (await store.user(user, 10)).events] == [("商品", 10), ("7", 15), ("8", 20)]
        assert [one.timestamp_ms for one in (await store.user(user, 2)).events] == [15, 20]
        other = new_user()
        assert await store.append([event(other, "a")]) == 1, "an event id is its user's"

    with_store(open_one, work)
    assert len(with_store(open_one, lambda store: store.user(user, 10)).events) == 3, "another process sees them"


def test_many_writers_at_once(open_one: Callable[[], EventStore]) -> None:
    user = new_user()

    async def work(store: EventStore) -> None:
        added = await asyncio.gather(*(store.append([event(user, str(number % 50), number)]) for number in range(200)))
        assert sum(added) == 50 and len((await store.user(user, 1000)).events) == 50

    with_store(open_one, work)


def test_what_is_erased_is_gone_and_remembered_as_erased(open_one: Callable[[], EventStore]) -> None:
    user, other = new_user(), new_user()

    async def work(store: EventStore) -> None:
        await store.append([event(user, "a"), event(user, "b"), event(other, "a")])
        await store.identify(user, "nobody")
        await store.identify(user, "somebody else")
        assert (await store.user(user, 10)).identity == "nobody"
        assert await store.erase(user) == 2
        state = await store.user(user, 10)
        assert state.events == () and state.identity is None and state.erased
        assert len((await store.user(other, 10)).events) == 1 and not (await store.user(other, 10)).erased
        assert await store.erase(user) == 0
        await store.append([event(user, "a", 70)])
        assert [one.timestamp_ms for one in (await store.user(user, 10)).events] == [70]

    with_store(open_one, work)


def test_events_are_counted_by_hour_and_item(open_one: Callable[[], EventStore]) -> None:
    one, other = new_user(), new_user()
    noon = 1000 * HOUR_MS

    async def work(store: EventStore) -> None:
        first = [event(one, "a", noon, "商品"), event(one, "b", noon + HOUR_MS - 1, "商品"), event(one, "c", noon, "8")]
        await store.append([*first, event(one, "a", noon, "商品"), event(other, "a", noon, "商品"), event(other, "b", noon + HOUR_MS, "8")])
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
        opening = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(6)]
        assert [process.wait() for process in opening] == [0] * 6


def test_erased_text_is_not_in_the_files_of_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"

    async def work(store: EventStore) -> None:
        await store.append([event("a secret name", "an event id", item_id="a secret item")])
        await store.erase("a secret name")

    with_store(lambda: SqliteEventStore(path), work)
    for file in tmp_path.iterdir():
        assert b"a secret" not in file.read_bytes(), file


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
    path.write_text("this is no database, but a text that is long enough to be told from an empty file", encoding="utf-8")
    with pytest.raises(UserError, match="not a usable event store"):
        SqliteEventStore(path)
    with pytest.raises(UserError, match=r"events.store: 'mysql' is none of sqlite, none, redis://"):
        open_store(LiveEventsConfig(store="mysql"))
    assert open_store(LiveEventsConfig(store="none")) is None


@needs_redis
def test_a_server_that_would_lose_events_is_refused(tmp_path: Path) -> None:
    server, url = start_redis(tmp_path)
    try:
        with pytest.raises(EventStoreError, match="set `appendonly yes` and `appendfsync always`"):
            with_store(lambda: open_store(LiveEventsConfig(store=url)), lambda store: store.append([event("u", "a")]))  # type: ignore[arg-type, return-value]
    finally:
        server.terminate()
        server.wait()


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
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(0.0013 * (attempt % 40))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged |= {line.strip() for line in (first, *writer.stdout) if line.endswith("\n")}
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


@needs_redis
def test_what_a_server_acknowledged_survives_its_kill_9(tmp_path: Path) -> None:
    acknowledged = 0

    async def write(url: str, until: float) -> None:
        nonlocal acknowledged
        store = open_store(LiveEventsConfig(store=url))
        assert store is not None
        with_error = False
        while not with_error and time.monotonic() < until:
            try:
                await store.append([event("u", str(acknowledged), acknowledged)])
                acknowledged += 1
            except EventStoreError:
                with_error = True
        await store.close()

    for _ in range(3):
        server, url = start_redis(tmp_path, *DURABLE)
        asyncio.run(write(url, time.monotonic() + 0.3))
        server.kill()
        server.wait()
    server, url = start_redis(tmp_path, *DURABLE)
    try:
        kept = with_store(lambda: open_store(LiveEventsConfig(store=url)), lambda store: store.user("u", 100_000))  # type: ignore[arg-type, return-value]
        times = [one.timestamp_ms for one in kept.events]
        assert acknowledged > 10 and times == list(range(acknowledged - len(times), acknowledged)) and len(times) == min(5000, acknowledged)
    finally:
        server.terminate()
        server.wait()
