"""Events in a SQLite file, for one machine, which several processes may share.

Writes share their commits: what waits while one commit is written to disk becomes the next one.
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
from serving.events.base import (
    DAY_S,
    ErasedUsers,
    Event,
    EventStoreError,
    HourlyCount,
    UserState,
    user_digest,
)
from serving.events.sqlite_schema import (
    ADD_ERASURE_ORDER,
    ASSIGN_PSEUDONYM,
    ERASED_AFTER,
    HAS_ERASURE_ORDER,
    NEWEST_EVENTS,
    PRUNE,
    PSEUDONYM_AND_ERASURES,
    SCHEMA,
)

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], Any]

_NUM_READERS = 4
PRUNE_INTERVAL_S = 3600.0
TRUNCATE_ATTEMPTS, TRUNCATE_PAUSE_S = 20, 0.05
_MAX_IN_ONE_COMMIT = 1000

logger = logging.getLogger(__name__)


class SqliteEventStore:
    """A store in one file, in WAL mode: readers never wait for writers.

    Args:
        path: the file; created when absent.
        timeout_s: how long a writer waits for a writer of another process.
        keep_days: older events are deleted when the file is opened and every hour; if absent, they are kept.

    Raises:
        UserError: the file cannot be opened, or is not a SQLite file.
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
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="event reader")
        self._local = threading.local()

    def _prepare(self) -> None:
        """Creates the tables.

        Another process may be doing the same, and the change to WAL does not wait for it by itself.
        """
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                with contextlib.closing(self._connect()) as connection:
                    connection.executescript(SCHEMA)
                    if not connection.execute(HAS_ERASURE_ORDER).fetchone():
                        connection.executescript(ADD_ERASURE_ORDER)
                return
            except sqlite3.Error as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise UserError(f"{self._path}: not a usable event store ({error})") from None
                time.sleep(0.02)

    async def append(self, events: Sequence[Event]) -> int:
        rows = [(one.user_id, one.event_id, one.item_id, one.event_type, one.timestamp_ms) for one in events]

        def insert(connection: sqlite3.Connection) -> int:
            # Not `INSERT OR IGNORE`: triggers would inherit its conflict resolution.
            return connection.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
            ).rowcount

        return int(await self._write(insert))

    async def user(self, user_id: str, limit: int) -> UserState:
        return await self._read(lambda connection: _user(connection, user_id, limit))

    async def assign_pseudonym(self, user_id: str, pseudonym: str, erasures: int) -> None:
        values = (user_id, pseudonym, user_digest(user_id), erasures)
        await self._write(lambda connection: connection.execute(ASSIGN_PSEUDONYM, values))

    async def erase(self, user_id: str) -> int:
        # Remembered first: a write that fails may have been carried out.
        self.erased_here.add(digest := user_digest(user_id))

        def delete(connection: sqlite3.Connection) -> int:
            count = connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount
            connection.execute("DELETE FROM identities WHERE user_id = ?", (user_id,))
            connection.execute(
                "INSERT INTO erasures VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (digest,)
            )
            return count

        count = int(await self._write(delete))
        # Until it is truncated, the write-ahead log still holds the erased events.
        for _ in range(TRUNCATE_ATTEMPTS):
            if await self._write(_truncate_log, alone=True):
                return count
            await asyncio.sleep(TRUNCATE_PAUSE_S)
        logger.warning(
            "%s: erased events stay in its write-ahead log while other processes read it", self._path
        )
        return count

    async def erased_after(self, position: int, limit: int) -> ErasedUsers:
        def read(connection: sqlite3.Connection) -> ErasedUsers:
            rows = connection.execute(ERASED_AFTER, (position, limit)).fetchall()
            digests = tuple(digest for _, digest in rows)
            return ErasedUsers(digests, rows[-1][0] if rows else position, len(rows) < limit)

        return await self._read(read)

    async def hourly(self, first_hour: int, last_hour: int) -> list[HourlyCount]:
        query = "SELECT hour, item_id, count FROM hourly WHERE hour BETWEEN ? AND ?"
        return await self._read(
            lambda connection: [
                HourlyCount(*row) for row in connection.execute(query, (first_hour, last_hour))
            ]
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
        # A commit that has returned is on disk, and deleted rows are overwritten.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")
        return connection

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        def work() -> T:
            try:
                if not hasattr(self._local, "connection"):
                    self._local.connection = self._connect()
                return read(self._local.connection)
            except sqlite3.Error as error:
                raise EventStoreError(f"{self._path}: {error}") from None

        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _write(self, write: Write, *, alone: bool = False) -> Any:
        waiting = _Waiting(write, Future(), alone)
        self._writes.put(waiting)
        return await asyncio.wrap_future(waiting.done)

    def _write_all(self) -> None:
        """Runs in the writer's thread: all waiting writes go into one transaction."""
        connection: sqlite3.Connection | None = None
        closing = False
        while not closing:
            waiting = [self._next()]
            while len(waiting) < _MAX_IN_ONE_COMMIT:
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
        """Returns the next write; when it is due, the deletion of old events."""
        if self._keep_days is None:
            return self._writes.get()
        left_s = self._prune_at - time.monotonic()
        if left_s > 0:
            with contextlib.suppress(queue.Empty):
                return self._writes.get(timeout=left_s)
        self._prune_at = time.monotonic() + PRUNE_INTERVAL_S
        return _Waiting(self._prune, Future(), True)

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Deletes some of the old events, and puts the rest behind the writes that wait by now."""
        assert self._keep_days is not None, "everything is kept"
        oldest_ms = int(1e3 * (time.time() - self._keep_days * DAY_S))
        try:
            gone = connection.execute(PRUNE, (oldest_ms, _MAX_IN_ONE_COMMIT)).rowcount
        except sqlite3.Error as error:
            logger.warning(
                "%s: events older than %g days are not deleted yet (%s)", self._path, self._keep_days, error
            )
        else:
            if gone == _MAX_IN_ONE_COMMIT:
                self._writes.put(_Waiting(self._prune, Future(), True))

    def _commit(
        self, connection: sqlite3.Connection | None, batch: "Sequence[_Waiting]"
    ) -> sqlite3.Connection | None:
        """Runs one transaction and returns the connection to go on with."""
        try:
            connection = connection or self._connect()
            if not batch[0].alone:
                connection.execute("BEGIN IMMEDIATE")
            answers = [one.write(connection) for one in batch]
            if connection.in_transaction:
                connection.execute("COMMIT")
        # Whatever went wrong, every waiting caller gets an answer.
        except Exception as error:
            for one in batch:
                one.done.set_exception(EventStoreError(f"{self._path}: {error}"))
            return _rolled_back(connection)
        for one, answer in zip(batch, answers, strict=True):
            one.done.set_result(answer)
        return connection


@dataclass(frozen=True)
class _Waiting:
    """A write, and the future that its caller waits for."""

    write: Write
    done: Future[Any]
    alone: bool
    """Runs outside of transactions."""


def _truncate_log(connection: sqlite3.Connection) -> bool:
    """Truncates the write-ahead log without waiting for readers, and returns whether there were none."""
    (waiting_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(waiting_ms)}")
    return not busy


def _rolled_back(connection: sqlite3.Connection | None) -> sqlite3.Connection | None:
    """Returns the connection without a transaction; None where it is unusable."""
    try:
        if connection is not None and connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        return None
    return connection


def _user(connection: sqlite3.Connection, user_id: str, limit: int) -> UserState:
    rows = connection.execute(NEWEST_EVENTS, (user_id, limit)).fetchall()
    pseudonym, erasures = connection.execute(
        PSEUDONYM_AND_ERASURES, (user_id, user_digest(user_id))
    ).fetchone()
    return UserState(tuple(Event(*row) for row in reversed(rows)), erasures, pseudonym)
