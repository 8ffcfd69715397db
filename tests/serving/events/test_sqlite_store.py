"""The SQLite event store: several processes, erased text, old events, locks and `kill -9`."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from passerelle.calendar_time import HOUR_MS
from serving.config import LiveEventsConfig
from serving.events.base import EventStore, EventStoreError
from serving.events.intake import open_store
from serving.events.sqlite_store import SqliteEventStore
from tests.support.stores import event, with_store
from tests.support.waiting import eventually_async


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


def test_old_events_are_deleted_at_opening_and_every_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now_ms = tmp_path / "events.sqlite", int(1e3 * time.time())
    old_ms = now_ms - 3 * 86_400_000
    opened = SqliteEventStore(path)
    aged = [event(f"u{number % 7}", str(number), old_ms + number, "old") for number in range(2500)]
    asyncio.run(opened.append([*aged, event("u1", "new", now_ms - 86_400_000)]))
    asyncio.run(opened.close())

    async def number_of_events(store: EventStore) -> int:
        states = [await store.user(f"u{number}", 1000) for number in range(7)]
        return sum(len(state.events) for state in states)

    async def left(store: EventStore, count: int) -> None:
        async def as_many() -> bool:
            return await number_of_events(store) == count

        await eventually_async(as_many, "not pruned")

    async def work(store: EventStore) -> None:
        await left(store, 1)
        assert await store.hourly(old_ms // HOUR_MS, now_ms // HOUR_MS) == [
            ((now_ms - 86_400_000) // HOUR_MS, "7", 1)
        ]
        assert await store.append([event("u2", "late", old_ms)]) == 1
        for _ in range(100):
            assert await number_of_events(store) == 2, "the next deletion is an hour away"

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
        # Pruned without another write.
        await left(store, 1)

    with_store(lambda: open_kept(2), again)


def test_failing_prune_does_not_disturb_writers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_locked_file_raises_and_is_used_again(tmp_path: Path) -> None:
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
    """Kills writing processes at random moments, and asserts that acknowledged events are kept."""
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


def test_acknowledged_events_survive_kill_9(tmp_path: Path) -> None:
    killed_writers(tmp_path, 15)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_acknowledged_events_survive_a_thousand_kill_9(tmp_path: Path) -> None:
    killed_writers(tmp_path, 1000)
