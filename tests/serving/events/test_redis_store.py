"""The Redis event store: durability, the append-only file, old events and `kill -9`."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from passerelle.calendar_time import HOUR_MS
from serving.config import LiveEventsConfig
from serving.events.base import EventStore, EventStoreError, user_digest
from serving.events.intake import open_store
from tests.support.stores import DURABLE, event, needs_redis, new_user, redis_store, start_redis, with_store
from tests.support.waiting import eventually_async, slow_answer


@needs_redis
def test_server_without_durable_writes_is_refused(tmp_path: Path) -> None:
    server, url = start_redis(tmp_path)
    try:
        with pytest.raises(EventStoreError, match="set `appendonly yes` and `appendfsync always`"):
            with_store(
                lambda: open_store(LiveEventsConfig(store=url)), lambda store: store.append([event("u", "a")])
            )  # type: ignore[arg-type, return-value]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server, url = start_redis(tmp_path, *DURABLE, "--rdbcompression", "no")
    yield url
    server.terminate()
    server.wait()


@needs_redis
def test_events_of_many_users_take_few_round_trips(redis_url: str) -> None:
    port = int(redis_url.rpartition(":")[2].partition("/")[0])

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        while data := await reader.read(1 << 20):
            await slow_answer(delay_s)
            writer.write(data)
        writer.close()

    async def far_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(relay(reader, forth, 0.02), relay(back, writer, 0.0))

    async def main() -> float:
        async with await asyncio.start_server(far_away, "127.0.0.1", 0) as proxy:
            store = open_store(
                LiveEventsConfig(store=f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/0")
            )
            assert store is not None
            await store.append([event("first", "a")])
            started = time.perf_counter()
            assert await store.append([event(f"u{number}", "a") for number in range(300)]) == 300
            took_s = time.perf_counter() - started
            await store.close()
            return took_s

    assert asyncio.run(main()) < 300 * 0.02 / 3


@needs_redis
def test_old_events_are_deleted(redis_url: str) -> None:
    now_ms, day_ms, digest = int(1e3 * time.time()), 86_400_000, user_digest("u")
    prefix = f"passerelle:{{{digest[:16]}}}:{digest}"

    def open_kept(keep_days: float | None = None) -> EventStore:
        store = open_store(LiveEventsConfig(store=redis_url, keep_days=keep_days))
        assert store is not None
        return store

    async def fill(store: EventStore) -> None:
        await store.erase("u")
        await store.append([event("u", str(days), now_ms - days * day_ms) for days in (1, 3, 5)])

    async def add(store: Any) -> None:
        assert await store.append([event("u", "new", now_ms), event("other", "new", now_ms)]) == 2
        state = await store.user("u", 10)
        assert state.erased and [one.timestamp_ms for one in state.events] == [now_ms - day_ms, now_ms]
        events, times, erased = (f"{prefix}:{name}" for name in ("events", "times", "erased"))
        assert (
            sorted(await store._client.hkeys(events)) == ["1", "new"]
            and await store._client.zcard(times) == 2
        )
        left_s = [await store._client.ttl(key) for key in (events, times, erased)]
        assert all(2 * 86_400 - 60 < one <= 2 * 86_400 for one in left_s[:2]) and left_s[2] == -1, (
            "erasures are remembered"
        )

    async def keep(store: Any) -> None:
        await store.append([event("u", "newer", now_ms)])
        assert [await store._client.ttl(f"{prefix}:{name}") for name in ("events", "times")] == [-1, -1]

    with_store(open_kept, fill)
    with_store(lambda: open_kept(2), add)
    with_store(open_kept, keep)


def holds(folder: Path, text: bytes) -> bool:
    """Returns whether a text is in the append-only file of a server."""
    while True:
        # A file may vanish in a rewrite.
        with contextlib.suppress(FileNotFoundError):
            return any(text in file.read_bytes() for file in folder.glob("appendonlydir/*"))


async def gone_from(folder: Path, *texts: bytes) -> None:
    await eventually_async(
        lambda: not any(holds(folder, text) for text in texts), "erased text is still in the append-only file"
    )


@needs_redis
def test_erased_text_leaves_the_append_only_file(redis_url: str, tmp_path: Path) -> None:
    async def work(store: Any) -> None:
        await store.append([event(f"u{number}", "an id", item_id="secret item") for number in range(3)])
        await store.append([event("other", "an id", item_id="known item")])
        await store.assign_pseudonym("u1", "secret name", 0)
        assert holds(tmp_path, b"secret item") and holds(tmp_path, b"secret name")
        for number in range(3):
            await store.erase(f"u{number}")
        await gone_from(tmp_path, b"secret")
        assert holds(tmp_path, b"known item")
        assert (await store._client.info("commandstats"))["cmdstat_bgrewriteaof"]["calls"] == 1, (
            "once for all three"
        )
        await store.append([event("u", "an id", item_id="secret item")])
        await store.erase("u")
        await gone_from(tmp_path, b"secret")

    with_store(lambda: redis_store(redis_url, rewrite_after_s=0.3), work)

    async def leave(store: EventStore) -> None:
        await store.append([event("u", "an id", item_id="secret item")])
        await store.erase("u")
        assert holds(tmp_path, b"secret")

    with_store(lambda: redis_store(redis_url), leave)
    asyncio.run(gone_from(tmp_path, b"secret"))


@needs_redis
def test_rewrite_in_progress_is_followed_by_another(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: Any) -> None:
        await store.append([event("u", "an id", item_id="secret item")])
        # Microseconds for each key.
        await store._client.config_set("rdb-key-save-delay", 200_000)
        await store._client.bgrewriteaof()
        await store._client.config_set("rdb-key-save-delay", 0)
        await store.erase("u")
        await gone_from(tmp_path, b"secret")

    with_store(lambda: redis_store(redis_url, rewrite_after_s=0.05), work)
    assert caplog.messages and all("already in progress" in message for message in caplog.messages)


@needs_redis
def test_server_without_rewrites_erases_events_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, url = start_redis(tmp_path, *DURABLE, "--rename-command", "BGREWRITEAOF", "")

    async def work(store: EventStore) -> None:
        await store.append([event("u", "a")])
        assert await store.erase("u") == 1
        await eventually_async(lambda: caplog.messages)
        assert len(caplog.messages) == 1 and "unknown command" in caplog.messages[0], (
            "said, and not asked again"
        )
        assert await store.erase("u") == 0

    try:
        with_store(lambda: redis_store(url, rewrite_after_s=0.01), work)
    finally:
        server.terminate()
        server.wait()


@needs_redis
def test_acknowledged_events_survive_kill_9_of_the_server(tmp_path: Path) -> None:
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
        kept = with_store(
            lambda: open_store(LiveEventsConfig(store=url)), lambda store: store.user("u", 100_000)
        )  # type: ignore[arg-type, return-value]
        times = [one.timestamp_ms for one in kept.events]
        assert (
            acknowledged > 10
            and times == list(range(acknowledged - len(times), acknowledged))
            and len(times) == min(5000, acknowledged)
        )
    finally:
        server.terminate()
        server.wait()


@needs_redis
def test_hourly_counts_hold_no_deleted_items(redis_url: str) -> None:
    """Neither erased events, nor events too old to be kept, nor events deleted for their age."""
    user, now_hour = new_user(), int(time.time()) // 3600
    recent, old = now_hour * HOUR_MS, (now_hour - 48) * HOUR_MS

    async def main() -> None:
        everything, a_day = redis_store(redis_url), redis_store(redis_url, keep_days=1.0)
        assert (
            await everything.append([event(user, "a", old, "first"), event(user, "b", recent, "second")]) == 2
        )
        assert await a_day.append([event(user, "c", recent, "third"), event(user, "d", old, "too old")]) == 1
        assert sorted(await everything.hourly(now_hour - 50, now_hour)) == [
            (now_hour, "second", 1),
            (now_hour, "third", 1),
        ]
        client: Any = everything._client  # type: ignore[attr-defined]
        # As if it had expired.
        await client.delete(f"passerelle:hour:{now_hour}")
        assert await everything.erase(user) == 2
        assert await client.hgetall(f"passerelle:hour:{now_hour}") == {}
        await everything.close()
        await a_day.close()

    asyncio.run(main())


@needs_redis
def test_erasures_of_earlier_versions_are_copied_while_they_run(redis_url: str) -> None:
    async def all_of(store: EventStore) -> set[str]:
        page, digests = await store.erased_after(0, 2), set()
        while not page.is_last:
            digests |= set(page.digests)
            page = await store.erased_after(page.position, 2)
        return digests | set(page.digests)

    async def work(store: EventStore) -> None:
        earlier = {f"digest {number}" for number in range(5)}
        client = redis.asyncio.Redis.from_url(redis_url)
        await client.sadd("passerelle:erased", *earlier)
        user = new_user()
        await store.erase(user)
        assert await all_of(store) == {*earlier, user_digest(user)}
        last = (await store.erased_after(0, 100)).position
        await client.sadd("passerelle:erased", "meanwhile")
        assert (await store.erased_after(last, 100)).digests == ("meanwhile",)
        assert await client.scard("passerelle:erased") == 6, "an earlier version may be started again"
        await client.aclose()

    with_store(lambda: redis_store(redis_url), work)


@needs_redis
def test_a_server_that_has_lost_erasures_is_read_from_the_start(redis_url: str) -> None:
    async def work(store: EventStore) -> None:
        for user in ("one", "two", "three"):
            await store.erase(user)
        assert (await store.erased_after(0, 100)).position == 3
        client = redis.asyncio.Redis.from_url(redis_url)
        await client.delete("passerelle:erasures")
        await client.aclose()
        await store.erase("four")
        assert (await store.erased_after(3, 100)).digests == (user_digest("four"),)

    with_store(lambda: redis_store(redis_url), work)
