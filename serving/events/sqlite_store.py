"""Events in a SQLite file: for one machine. Several processes may share it.

Writers take turns and share their commits: what waits while one is written to disk becomes the next one.
"""

import asyncio
import contextlib
import logging
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from passerelle.errors import UserError
from serving.events.base import DAY_S, HOUR_MS, Event, EventStoreError, HourlyCount, UserState, user_digest

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], Any]

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL, event_id TEXT NOT NULL, item_id TEXT NOT NULL, event_type TEXT NOT NULL, timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (user_id, event_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_by_time ON events (user_id, timestamp_ms);
CREATE INDEX IF NOT EXISTS events_by_age ON events (timestamp_ms);
CREATE TABLE IF NOT EXISTS identities (user_id TEXT PRIMARY KEY, identity TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasures (user_digest TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hourly (hour INTEGER, item_id TEXT, count INTEGER, PRIMARY KEY (hour, item_id)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS events_counted AFTER INSERT ON events BEGIN
    INSERT INTO hourly VALUES (new.timestamp_ms / {HOUR_MS}, new.item_id, 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER IF NOT EXISTS events_uncounted AFTER DELETE ON events BEGIN
    UPDATE hourly SET count = count - 1 WHERE hour = old.timestamp_ms / {HOUR_MS} AND item_id = old.item_id;
    DELETE FROM hourly WHERE hour = old.timestamp_ms / {HOUR_MS} AND item_id = old.item_id AND count <= 0;
END;
"""
_ASSIGN_PSEUDONYM = """
INSERT OR IGNORE INTO identities SELECT ?, ? WHERE coalesce((SELECT times FROM erasures WHERE user_digest = ?), 0) = ?
"""
# One statement: what it tells is of one moment, so that an erasure after it makes its count an old one.
_WHO = """
SELECT (SELECT identity FROM identities WHERE user_id = ?), coalesce((SELECT times FROM erasures WHERE user_digest = ?), 0)
"""
_PRUNE = "DELETE FROM events WHERE (user_id, event_id) IN (SELECT user_id, event_id FROM events WHERE timestamp_ms < ? LIMIT ?)"
_READERS = 4
PRUNE_EVERY_S = 3600.0
EMPTYING_ATTEMPTS, EMPTYING_PAUSE_S = 20, 0.05
_MOST_IN_ONE_COMMIT = 1000

logger = logging.getLogger(__name__)


class SqliteEventStore:
    """A store in one file, in WAL mode: readers never wait for writers.

    Args:
        path: the file; made when absent.
        timeout_s: how long a writer waits for one of another process.
        keep_days: older events are deleted, when the file is opened and every hour; none, if absent.

    Raises:
        UserError: the file cannot be opened, or is none of SQLite.
    """

    def __init__(self, path: Path, *, timeout_s: float = 2.0, keep_days: float | None = None) -> None:
        self.erased_here: set[str] = set()
        self._path = path
        self._timeout_s = timeout_s
        self._keep_days = keep_days
        self._prune_at = -math.inf
        path.parent.mkdir(parents=True, exist_ok=True)
        self._prepare()
        self._writes: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="event writer", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="event reader")
        self._local = threading.local()

    def _prepare(self) -> None:
        """Make the tables; others may be doing so, and the change to WAL does not wait for them by itself."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                with contextlib.closing(self._connect()) as connection:
                    connection.executescript(_SCHEMA)
                return
            except sqlite3.Error as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise UserError(f"{self._path}: not a usable event store ({error})") from None
                time.sleep(0.02)

    async def append(self, events: Sequence[Event]) -> int:
        rows = [(one.user_id, one.event_id, one.item_id, one.event_type, one.timestamp_ms) for one in events]

        def insert(connection: sqlite3.Connection) -> int:
            # Not `INSERT OR IGNORE`: triggers would take over how it meets conflicts.
            return connection.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
            ).rowcount

        return int(await self._write(insert))

    async def user(self, user_id: str, limit: int) -> UserState:
        return await self._read(lambda connection: _user(connection, user_id, limit))

    async def assign_pseudonym(self, user_id: str, pseudonym: str, erasures: int) -> None:
        values = (user_id, pseudonym, user_digest(user_id), erasures)
        await self._write(lambda connection: connection.execute(_ASSIGN_PSEUDONYM, values))

    async def erase(self, user_id: str) -> int:
        self.erased_here.add(digest := user_digest(user_id))  # first: what fails may yet have been done

        def delete(connection: sqlite3.Connection) -> int:
            count = connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            connection.execute("DELETE FROM identities WHERE user_id = ?", (user_id,))
            connection.execute(
                "INSERT INTO erasures VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (digest,)
            )
            return count

        count = int(await self._write(delete))
        for _ in range(
            EMPTYING_ATTEMPTS
        ):  # else what was erased stays in the log beside the file for a while
            if await self._write(_empty_log, alone=True):
                return count
            await asyncio.sleep(EMPTYING_PAUSE_S)
        logger.warning("%s: what was erased is in the log beside it until nobody reads there", self._path)
        return count

    async def erased(self) -> frozenset[str]:
        return await self._read(
            lambda connection: frozenset(
                row[0] for row in connection.execute("SELECT user_digest FROM erasures")
            )
        )

    async def hourly(self, first_hour: int, last_hour: int) -> list[HourlyCount]:
        ask = "SELECT hour, item_id, count FROM hourly WHERE hour BETWEEN ? AND ?"
        return await self._read(
            lambda connection: [HourlyCount(*row) for row in connection.execute(ask, (first_hour, last_hour))]
        )

    async def ping(self) -> None:
        await self._read(lambda connection: connection.execute("SELECT 1").fetchone())

    async def close(self) -> None:
        self._writes.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._writer.join)
        self._readers.shutdown()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit that has returned is on disk
        connection.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
        return connection

    async def _read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        def work() -> T:
            try:
                if not hasattr(self._local, "connection"):
                    self._local.connection = self._connect()
                return ask(self._local.connection)
            except sqlite3.Error as error:
                raise EventStoreError(f"{self._path}: {error}") from None

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _write(self, write: Write, *, alone: bool = False) -> Any:
        waiting = _Waiting(write, Future(), alone)
        self._writes.put(waiting)
        return await asyncio.wrap_future(waiting.done)

    def _write_all(self) -> None:
        """The writer's thread: everything that waits goes into one transaction."""
        connection: sqlite3.Connection | None = None
        closing = False
        while not closing:
            waiting = [self._next()]
            while len(waiting) < _MOST_IN_ONE_COMMIT:
                try:
                    waiting.append(self._writes.get_nowait())
                except queue.Empty:
                    break
            closing = None in waiting
            wanted = [one for one in waiting if one is not None and one.done.set_running_or_notify_cancel()]
            for batch in ([one for one in wanted if not one.alone], *([one] for one in wanted if one.alone)):
                connection = self._commit(connection, batch) if batch else connection
        if connection is not None:
            connection.close()

    def _next(self) -> "_Waiting | None":
        """What is to be written next; when it is due, the deletion of what is too old."""
        if self._keep_days is None:
            return self._writes.get()
        left_s = self._prune_at - time.monotonic()
        if left_s > 0:
            with contextlib.suppress(queue.Empty):
                return self._writes.get(timeout=left_s)
        self._prune_at = time.monotonic() + PRUNE_EVERY_S
        return _Waiting(self._prune, Future(), True)

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete some of what is too old; more of it only after what waits by now, which is not to wait long."""
        assert self._keep_days is not None, "everything is kept"
        oldest_ms = int(1e3 * (time.time() - self._keep_days * DAY_S))
        try:
            gone = connection.execute(_PRUNE, (oldest_ms, _MOST_IN_ONE_COMMIT)).rowcount
        except sqlite3.Error as error:  # nobody waits for an answer
            logger.warning(
                "%s: what is older than %g days is not deleted yet (%s)", self._path, self._keep_days, error
            )
        else:
            if gone == _MOST_IN_ONE_COMMIT:
                self._writes.put(_Waiting(self._prune, Future(), True))

    def _commit(
        self, connection: sqlite3.Connection | None, batch: "Sequence[_Waiting]"
    ) -> sqlite3.Connection | None:
        """One transaction; the connection to go on with."""
        try:
            connection = connection or self._connect()
            if not batch[0].alone:
                connection.execute("BEGIN IMMEDIATE")
            answers = [one.write(connection) for one in batch]
            if connection.in_transaction:
                connection.execute("COMMIT")
        except Exception as error:  # nobody may wait for an answer that does not come
            for one in batch:
                one.done.set_exception(EventStoreError(f"{self._path}: {error}"))
            return _rolled_back(connection)
        for one, answer in zip(batch, answers, strict=True):
            one.done.set_result(answer)
        return connection


@dataclass(frozen=True)
class _Waiting:
    """Something to be written, and who waits for it."""

    write: Write
    done: Future[Any]
    alone: bool
    """Outside of transactions."""


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Whether it could be done: not while somebody reads there, and nobody waits for that."""
    (waiting_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(waiting_ms)}")
    return not busy


def _rolled_back(connection: sqlite3.Connection | None) -> sqlite3.Connection | None:
    """The connection without a transaction; None where it is of no more use."""
    try:
        if connection is not None and connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        return None
    return connection


def _user(connection: sqlite3.Connection, user_id: str, limit: int) -> UserState:
    rows = connection.execute(
        "SELECT event_id, user_id, item_id, event_type, timestamp_ms FROM events WHERE user_id = ? "
        "ORDER BY timestamp_ms DESC, event_id DESC LIMIT ?",
        (user_id, limit),
    ).fetchall()
    pseudonym, erasures = connection.execute(_WHO, (user_id, user_digest(user_id))).fetchone()
    return UserState(tuple(Event(*row) for row in reversed(rows)), erasures, pseudonym)
