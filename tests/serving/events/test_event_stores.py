"""Event stores: one behaviour for SQLite and a real Redis server."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passerelle.calendar_time import HOUR_MS
from passerelle.config import validate
from passerelle.errors import UserError
from serving.config import LiveEventsConfig, ServingConfig
from serving.events.base import EventStore, user_digest
from serving.events.intake import open_store
from serving.events.sqlite_store import SqliteEventStore
from tests.support.stores import DURABLE, event, needs_redis, new_user, start_redis, with_store


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=needs_redis)])
def open_one(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], EventStore]]:
    """Returns a function that opens stores over the same events."""
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


def test_events_are_returned_once_in_order_of_time(open_one: Callable[[], EventStore]) -> None:
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


def test_erasure_deletes_events_and_is_remembered(open_one: Callable[[], EventStore]) -> None:
    user, other = new_user(), new_user()

    async def work(store: EventStore) -> None:
        await store.append([event(user, "a"), event(user, "b"), event(other, "a")])
        await store.assign_pseudonym(user, "a pseudonym", 0)
        await store.assign_pseudonym(user, "another", 0)
        assert (await store.user(user, 10)).pseudonym == "a pseudonym"
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
            await store.assign_pseudonym(user, "chosen before", before.erasures)
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


def test_erased_users_are_listed_in_the_order_of_their_erasures(open_one: Callable[[], EventStore]) -> None:
    users, other = [new_user() for _ in range(5)], new_user()

    async def work(store: EventStore) -> None:
        await store.append([event(other, "a")])
        before = await last_position(store)
        for user in users:
            await store.erase(user)
        await store.erase(users[0])
        digests, position = [], before
        while not (page := await store.erased_after(position, 2)).is_last:
            assert len(page.digests) == 2 and page.position > position
            digests += page.digests
            position = page.position
        assert [*digests, *page.digests] == [user_digest(user) for user in users]
        again = await store.erased_after(page.position, 2)
        assert (again.digests, again.position, again.is_last) == ((), page.position, True)
        assert {user_digest(user) for user in users} < set((await store.erased_after(0, 10_000)).digests)

    with_store(open_one, work)


async def last_position(store: EventStore) -> int:
    return (await store.erased_after(0, 10_000)).position


def test_stores_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
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
