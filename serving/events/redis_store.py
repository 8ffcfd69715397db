"""Events in Redis or Valkey, for several machines: the only file that imports the `redis` client.

Keys of a user, all in one slot of a cluster: a hash of events by id, a sorted set of event ids by time,
the pseudonym (`identity`), and the number of erasures (`erased`).
Keys of an hour: a hash of counts by item.
Counts are written after the events: where a process is killed between the two, trends lack some events.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from passerelle.calendar_time import HOUR_MS
from passerelle.errors import UserError, install_extra
from serving.events.base import (
    DAY_S,
    ErasedUsers,
    Event,
    EventStoreError,
    HourlyCount,
    UserState,
    user_digest,
)

try:
    import redis.asyncio as redis
    from redis.exceptions import RedisError, ResponseError
except ImportError as error:
    raise UserError(f"events.store is Redis, whose client is not here: {install_extra('redis')}") from error

_APPEND = """
local new = {}
local keeps_all = ARGV[2] == '0'
for i = 3, #ARGV, 3 do
    local is_kept = keeps_all or tonumber(ARGV[i + 2]) >= tonumber(ARGV[1])
    if is_kept and redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) == 1 then
        redis.call('ZADD', KEYS[2], ARGV[i + 2], ARGV[i])
        table.insert(new, ARGV[i + 1])
    end
end
local gone = {}
if keeps_all then
    redis.call('PERSIST', KEYS[1])
    redis.call('PERSIST', KEYS[2])
else
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1])) do
        table.insert(gone, redis.call('HGET', KEYS[1], id))
        redis.call('HDEL', KEYS[1], id)
    end
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[1])
    redis.call('EXPIRE', KEYS[1], ARGV[2])
    redis.call('EXPIRE', KEYS[2], ARGV[2])
end
return {new, gone}
"""
# Lua's stack holds some 8,000 values: `keep_per_user` is below that.
_USER = """
local ids = redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1] - 1)
local events = {}
if #ids > 0 then events = redis.call('HMGET', KEYS[1], unpack(ids)) end
return {events, redis.call('GET', KEYS[3]), redis.call('GET', KEYS[4])}
"""
_ASSIGN_PSEUDONYM = """
if (redis.call('GET', KEYS[4]) or '0') == ARGV[2] then redis.call('SET', KEYS[3], ARGV[1], 'NX') end
"""
_ERASE = """
local events = redis.call('HVALS', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('INCR', KEYS[4])
return events
"""
# An item whose count is 0 is deleted: its only events may have been those of an erased user.
_COUNT = """
if tonumber(ARGV[2]) < 0 and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return end
if redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2]) <= 0 then redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
"""
# The score of an erased user is the position in the order of erasures; no member is ever removed.
_REMEMBER = "redis.call('ZADD', KEYS[1], 'NX', redis.call('ZCARD', KEYS[1]) + 1, ARGV[1])"
_ERASED = "passerelle:erasures"
_ERASED_BY_EARLIER_VERSIONS = "passerelle:erased"
_CONNECTIONS = 32
_HOURS_KEPT_S = 90 * DAY_S

logger = logging.getLogger(__name__)


class RedisEventStore:
    """A store on a server that writes every command to disk before it answers.

    The server needs `appendonly yes` and `appendfsync always`.

    Args:
        url: `redis://HOST:PORT/DB`.
        timeout_s: for a connection and for an answer.
        keep_days: a user's older events are deleted when newer ones arrive, and all of them this long after
            the last one; if absent, events are kept.
        rewrite_after_s: delay after an erasure until the server is asked to rewrite its append-only file,
            which still holds the erased events.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 2.0,
        keep_days: float | None = None,
        rewrite_after_s: float = 60.0,
    ) -> None:
        self.erased_here: set[str] = set()
        self._keep_s = 0 if keep_days is None else math.ceil(keep_days * DAY_S)
        self._rewrite_after_s = rewrite_after_s
        self._file_holds_erased = False
        self._rewriting: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        pool = redis.BlockingConnectionPool.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            decode_responses=True,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
        )
        self._client: Any = redis.Redis.from_pool(pool)
        self._durable = False
        self._num_copied = 0
        scripts = (_APPEND, _USER, _ASSIGN_PSEUDONYM, _ERASE, _COUNT, _REMEMBER)
        self._append, self._user, self._assign_pseudonym, self._erase, self._add, self._remember = map(
            self._client.register_script, scripts
        )

    async def append(self, events: Sequence[Event]) -> int:
        if not self._durable:
            await self._require_durable()
        oldest_ms = int(1e3 * (time.time() - self._keep_s))
        by_user: dict[str, list[str | int]] = {}
        for event in events:
            value = json.dumps([event.item_id, event.event_type, event.timestamp_ms])
            by_user.setdefault(event.user_id, [oldest_ms, self._keep_s]).extend(
                (event.event_id, value, event.timestamp_ms)
            )
        with _store_errors():
            # One pipeline: the server writes all of it to disk at once.
            async with self._client.pipeline(transaction=False) as pipeline:
                for user_id, arguments in by_user.items():
                    await self._append(keys=_keys(user_id), args=arguments, client=pipeline)
                answers = await pipeline.execute()
        new, deleted = ([value for answer in answers for value in answer[i]] for i in (0, 1))
        await self._count(new, 1)
        await self._count(deleted, -1)
        return len(new)

    async def user(self, user_id: str, limit: int) -> UserState:
        with _store_errors():
            found, pseudonym, erasures = await self._user(keys=_keys(user_id), args=[limit])
        # The script returns values without event ids, which no caller needs.
        events = (Event("", user_id, *json.loads(value)) for value in reversed(found))
        return UserState(tuple(events), int(erasures or 0), pseudonym or None)

    async def assign_pseudonym(self, user_id: str, pseudonym: str, erasures: int) -> None:
        with _store_errors():
            await self._assign_pseudonym(keys=_keys(user_id), args=[pseudonym, erasures])

    async def erase(self, user_id: str) -> int:
        # Remembered first: a command that fails may have been carried out.
        self.erased_here.add(digest := user_digest(user_id))
        try:
            with _store_errors():
                await self._remember(keys=[_ERASED], args=[digest])
                deleted = await self._erase(keys=_keys(user_id))
        finally:
            self._file_holds_erased = True
            if self._rewriting is None or self._rewriting.done():
                self._rewriting = asyncio.create_task(self._rewrite_file())
        await self._count(deleted, -1)
        return len(deleted)

    async def erased_after(self, position: int, limit: int) -> ErasedUsers:
        with _store_errors():
            await self._copy_erasures_of_earlier_versions(limit)
            # Of a server that has lost some since: they are numbered anew.
            if position > await self._client.zcard(_ERASED):
                position = 0
            found = await self._client.zrangebyscore(
                _ERASED, f"({position}", "+inf", start=0, num=limit, withscores=True
            )
        digests = tuple(digest for digest, _ in found)
        return ErasedUsers(digests, int(found[-1][1]) if found else position, len(found) < limit)

    async def _copy_erasures_of_earlier_versions(self, limit: int) -> None:
        """Copies what earlier versions of this store remember without an order; they may still be running."""
        count = await self._client.scard(_ERASED_BY_EARLIER_VERSIONS)
        if count == self._num_copied:
            return
        digests = list(await self._client.smembers(_ERASED_BY_EARLIER_VERSIONS))
        for first in range(0, len(digests), limit):
            async with self._client.pipeline(transaction=False) as pipeline:
                for digest in digests[first : first + limit]:
                    await self._remember(keys=[_ERASED], args=[digest], client=pipeline)
                await pipeline.execute()
        self._num_copied = count

    async def hourly(self, first_hour: int, last_hour: int) -> list[HourlyCount]:
        hours = range(first_hour, last_hour + 1)
        with _store_errors():
            async with self._client.pipeline(transaction=False) as pipeline:
                for hour in hours:
                    pipeline.hgetall(_hour_key(hour))
                found = await pipeline.execute()
        counts = [
            (hour, item_id, int(count))
            for hour, items in zip(hours, found, strict=True)
            for item_id, count in items.items()
        ]
        return [HourlyCount(*one) for one in counts if one[2] > 0]

    async def _count(self, values: Sequence[str], by: int) -> None:
        """Adds to the hourly counts; a failure does not affect the events themselves."""
        with contextlib.suppress(RedisError, OSError):
            async with self._client.pipeline(transaction=False) as pipeline:
                for item_id, _, timestamp_ms in map(json.loads, values):
                    await self._add(
                        keys=[_hour_key(timestamp_ms // HOUR_MS)],
                        args=[item_id, by, _HOURS_KEPT_S],
                        client=pipeline,
                    )
                await pipeline.execute()

    async def ping(self) -> None:
        with _store_errors():
            await self._client.ping()

    async def close(self) -> None:
        self._closing.set()
        if self._rewriting is not None:
            await self._rewriting
        await self._client.aclose()

    async def _rewrite_file(self) -> None:
        """Has the server rewrite its append-only file, once for several erasures; at once when closing."""
        while self._file_holds_erased:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._rewrite_after_s)
            # Cleared before: an erasure during the rewrite needs another one.
            self._file_holds_erased = False
            try:
                await self._client.bgrewriteaof()
            except (RedisError, OSError) as error:
                # A rewrite in progress may have begun before the erasure: ask again.
                # A server that refuses is not asked again.
                again = not isinstance(error, ResponseError) or "in progress" in str(error)
                self._file_holds_erased |= again and not self._closing.is_set()
                logger.warning(
                    "erased events are still in the append-only file of the event server: not rewritten (%s)",
                    error,
                )

    async def _require_durable(self) -> None:
        """Checks that the server writes to disk before it answers.

        Raises:
            EventStoreError: the server could lose acknowledged events in a crash.
        """
        with _store_errors():
            settings = {
                **await self._client.config_get("appendonly"),
                **await self._client.config_get("appendfsync"),
            }
        if (settings.get("appendonly"), settings.get("appendfsync")) != ("yes", "always"):
            raise EventStoreError(
                "the event server may lose what it has acknowledged: "
                "set `appendonly yes` and `appendfsync always`"
            )
        self._durable = True


def _keys(user_id: str) -> list[str]:
    digest = user_digest(user_id)
    # The text in braces decides about the node of a cluster.
    slot = f"passerelle:{{{digest[:16]}}}"
    return [f"{slot}:{digest}:{name}" for name in ("events", "times", "identity", "erased")]


def _hour_key(hour: int) -> str:
    return f"passerelle:hour:{hour}"


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """Raises the errors of the client as `EventStoreError`."""
    try:
        yield
    except (RedisError, OSError) as error:
        message = " ".join(str(error).split())
        raise EventStoreError(f"the event server does not answer: {message}") from None
