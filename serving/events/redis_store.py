"""Events in Redis or Valkey: for several machines. The only file that knows the `redis` client.

By user, all in one slot of a cluster: a hash of events by id, a sorted set of ids by time, an identity, and a mark of erasure.
By hour: a hash of counts by item. It is written after the events, so that what trends may lack some where a process is killed.
"""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from passerelle.errors import UserError
from serving.events.base import HOUR_MS, Event, EventStoreError, HourlyCount, UserState, user_digest

try:
    import redis.asyncio as redis
    from redis.exceptions import RedisError
except ImportError as error:  # an extra
    raise UserError("events.store is Redis, whose client is not here: pip install 'passerelle[redis]'") from error

_APPEND = """
local new = {}
for place = 1, #ARGV, 3 do
    if redis.call('HSETNX', KEYS[1], ARGV[place], ARGV[place + 1]) == 1 then
        redis.call('ZADD', KEYS[2], ARGV[place + 2], ARGV[place])
        table.insert(new, ARGV[place + 1])
    end
end
return new
"""
_USER = """
local ids = redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1] - 1)
local events = {}
if #ids > 0 then events = redis.call('HMGET', KEYS[1], unpack(ids)) end
return {events, redis.call('GET', KEYS[3]), redis.call('EXISTS', KEYS[4])}
"""
_ERASE = """
local events = redis.call('HVALS', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('SET', KEYS[4], '1')
return events
"""
_ALL_ERASED = "passerelle:erased"
_CONNECTIONS = 32
_HOURS_KEPT_S = 90 * 86_400
_MOST_UNPACKED = 5000
"""Lua has room for some 8,000 values on its stack."""


class RedisEventStore:
    """A store on a server that writes every command to disk before it answers (`appendonly yes`, `appendfsync always`).

    Args:
        url: `redis://HOST:PORT/DB`.
        timeout_s: of a connection and of an answer.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
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
        self._append, self._user, self._erase = map(self._client.register_script, (_APPEND, _USER, _ERASE))

    async def append(self, events: Sequence[Event]) -> int:
        if not self._durable:
            await self._require_durable()
        by_user: dict[str, list[str | int]] = {}
        for event in events:
            value = json.dumps([event.item_id, event.event_type, event.timestamp_ms])
            by_user.setdefault(event.user_id, []).extend((event.event_id, value, event.timestamp_ms))
        try:
            new = [value for user_id, arguments in by_user.items() for value in await self._append(keys=_keys(user_id), args=arguments)]
        except (RedisError, OSError) as error:
            raise _failed(error) from None
        await self._count(new, 1)
        return len(new)

    async def user(self, user_id: str, limit: int) -> UserState:
        try:
            found, identity, erased = await self._user(keys=_keys(user_id), args=[min(limit, _MOST_UNPACKED)])
        except (RedisError, OSError) as error:
            raise _failed(error) from None
        # The script gives values without their ids: nobody downstream needs them.
        events = (Event("", user_id, *json.loads(value)) for value in reversed(found))
        return UserState(tuple(events), bool(erased), identity or None)

    async def identify(self, user_id: str, identity: str) -> None:
        try:
            await self._client.set(_keys(user_id)[2], identity, nx=True)
        except (RedisError, OSError) as error:
            raise _failed(error) from None

    async def erase(self, user_id: str) -> int:
        try:
            await self._client.sadd(_ALL_ERASED, user_digest(user_id))
            gone = await self._erase(keys=_keys(user_id))
        except (RedisError, OSError) as error:
            raise _failed(error) from None
        await self._count(gone, -1)
        return len(gone)

    async def erased(self) -> frozenset[str]:
        try:
            return frozenset(await self._client.smembers(_ALL_ERASED))
        except (RedisError, OSError) as error:
            raise _failed(error) from None

    async def hourly(self, first_hour: int, last_hour: int) -> list[HourlyCount]:
        hours = range(first_hour, last_hour + 1)
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for hour in hours:
                    pipeline.hgetall(_hour_key(hour))
                found = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise _failed(error) from None
        counts = [(hour, item_id, int(count)) for hour, items in zip(hours, found, strict=True) for item_id, count in items.items()]
        return [HourlyCount(*one) for one in counts if one[2] > 0]

    async def _count(self, values: Sequence[str], by: int) -> None:
        """Add to the counts of the hours; the events themselves are safe, whatever becomes of it."""
        with contextlib.suppress(RedisError, OSError):
            async with self._client.pipeline(transaction=False) as pipeline:
                for item_id, _, timestamp_ms in map(json.loads, values):
                    pipeline.hincrby(key := _hour_key(timestamp_ms // HOUR_MS), item_id, by)
                    pipeline.expire(key, _HOURS_KEPT_S)
                await pipeline.execute()

    async def ping(self) -> None:
        try:
            await self._client.ping()
        except (RedisError, OSError) as error:
            raise _failed(error) from None

    async def close(self) -> None:
        await self._client.aclose()

    async def _require_durable(self) -> None:
        """Check once that what is acknowledged is on disk.

        Raises:
            EventStoreError: the server would lose it in a crash.
        """
        try:
            settings = {**await self._client.config_get("appendonly"), **await self._client.config_get("appendfsync")}
        except (RedisError, OSError) as error:
            raise _failed(error) from None
        if (settings.get("appendonly"), settings.get("appendfsync")) != ("yes", "always"):
            raise EventStoreError("the event server may lose what it has acknowledged: set `appendonly yes` and `appendfsync always`")
        self._durable = True


def _keys(user_id: str) -> list[str]:
    digest = user_digest(user_id)
    slot = f"passerelle:{{{digest[:16]}}}"  # the part in braces decides about the node of a cluster
    return [f"{slot}:{digest}:{name}" for name in ("events", "times", "identity", "erased")]


def _hour_key(hour: int) -> str:
    return f"passerelle:hour:{hour}"


def _failed(error: Exception) -> EventStoreError:
    return EventStoreError(f"the event server does not answer: {' '.join(str(error).split())}")
