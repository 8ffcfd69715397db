"""Event stores: one behaviour for SQLite and a real Redis server, then events through the chain and over HTTP."""

import asyncio
import itertools
import json
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

import httpx
import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from passerelle.errors import UserError
from serving.app import build_app
from serving.config import LiveEventsConfig, ServingConfig
from serving.events.base import NOBODY, Event, EventStore, EventStoreError, UserState, user_digest
from serving.events.intake import EventIntake, open_store
from serving.events.sqlite_store import SqliteEventStore
from serving.ports import free_ports
from serving.schemas import RecommendRequest
from serving.served_log import ServedLog
from tests.inference import OnnxInference
from tests.serving.conftest import recommender_of

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


def call(app: Any, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [await client.request(method, path, json=body) for method, path, body in requests]

    return asyncio.run(main())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteEventStore]:
    opened = SqliteEventStore(tmp_path / "events.sqlite")
    yield opened
    asyncio.run(opened.close())


def test_events_count_in_the_next_recommendation(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store))
    ask = ("POST", "/v1/recommend", {"user_id": 4_000, "k": 5})
    clicks = {"events": [{"event_id": str(item), "user_id": 4_000, "item_id": item} for item in (7, 17, 27)]}
    cold, kept, warm, again = call(app, ask, ("POST", "/v1/events", clicks), ask, ("POST", "/v1/events", clicks))
    assert cold.json()["fallback"] == "popularity" and warm.json()["fallback"] is None
    assert kept.status_code == 202 and kept.json() == {"accepted": 3, "duplicates": 0} and again.json() == {"accepted": 0, "duplicates": 3}
    assert not {7, 17, 27} & {item["item_id"] for item in warm.json()["items"]}
    given, same = call(
        app,
        ("POST", "/v1/recommend", {"user_id": 1000, "k": 5}),
        ("POST", "/v1/events", {"event_id": "x", "user_id": 1000, "item_id": 47}),
    )
    (after,) = call(app, ("POST", "/v1/recommend", {"user_id": 1000, "k": 5}))
    assert same.status_code == 202 and given.json()["items"] != after.json()["items"]


def test_an_erased_user_is_a_stranger(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store))
    click = ("POST", "/v1/events", {"event_id": "x", "user_id": 1000, "item_id": 47})
    ask = ("POST", "/v1/recommend", {"user_id": 1000})
    known, _, gone, stranger = call(app, ask, click, ("DELETE", "/v1/users/1000", None), ask)
    assert known.json()["fallback"] is None and gone.json() == {"events": 1} and stranger.json()["fallback"] == "popularity"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"event_id": "x", "user_id": 1000}, "an event has event_id, user_id and item_id"),
        (
            {"event_id": "x", "user_id": 1000, "item_id": 7, "events": [{"event_id": "y", "user_id": 1, "item_id": 7}]},
            "give either events or",
        ),
        ({"event_id": "x", "user_id": "ann", "item_id": 7}, "events.0.user_id: user_id 'ann'"),
        (
            {"event_id": "x", "user_id": 1000, "item_id": 7, "event_type": "buy"},
            "events.0.event_type: no 'buy' among the events",
        ),
        ({"event_id": "", "user_id": 1000, "item_id": 7}, "at least 1 character"),
        ({"events": [{"event_id": "x", "user_id": 1, "item_id": 7}] * 1001}, "at most 1000 items"),
    ],
)
def test_events_that_make_no_sense(bundle: Bundle, store: SqliteEventStore, body: Any, message: str) -> None:
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store))
    (answer,) = call(app, ("POST", "/v1/events", body))
    assert answer.status_code == 422 and any(message in problem["msg"] for problem in answer.json()["detail"]), answer.text


class Breaking:
    """A store that works, has erased user 1001, and then is down or hangs."""

    def __init__(self, hang_s: float = 0.0) -> None:
        self._hang_s = hang_s
        self.broken = False

    async def user(self, *_arguments: Any) -> UserState:
        if self.broken:
            await self._fail()
        return NOBODY

    async def erased(self) -> frozenset[str]:
        if self.broken:
            await self._fail()
        return frozenset({user_digest("1001")})

    async def _fail(self, *_arguments: Any) -> Any:
        await asyncio.sleep(self._hang_s)
        raise EventStoreError("the event server does not answer: gone")

    append = identify = erase = ping = _fail

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("hang_s", [0.0, 30.0])
def test_a_store_that_is_down_is_done_without(bundle: Bundle, hang_s: float) -> None:
    store: Any = Breaking(hang_s)
    config = validate(ServingConfig, {"events": {"timeout_ms": 50}}, "test")
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, config, store), EventIntake(bundle, store))
    known, forgotten = (("POST", "/v1/recommend", {"user_id": user_id, "deadline_ms": 5000}) for user_id in (1000, 1001))

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.post("/v1/recommend", json=known[2])
            await asyncio.sleep(0.05)
            store.broken = True
            answers = [await client.request(method, path, json=body) for method, path, body in (known, forgotten)]
            if hang_s:
                return answers
            event_ = {"event_id": "x", "user_id": 1000, "item_id": 7}
            return [*answers, await client.post("/v1/events", json=event_), await client.get("/readyz")]

    answer, erased, *others = asyncio.run(main())
    assert answer.status_code == 200 and answer.json()["degraded"] == ["events"] and answer.json()["fallback"] is None
    assert erased.json()["degraded"] == ["events"] and erased.json()["fallback"] == "popularity", "forgotten, also now"
    if others:
        kept, ready = others
        assert kept.status_code == 503 and kept.headers["retry-after"] == "1"
        assert ready.json()["checks"] == {"networks": True, "events": False}


def test_of_whom_it_is_not_known_whether_they_are_erased_nothing_is_known(bundle: Bundle) -> None:
    store: Any = Breaking()
    store.broken = True
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store))
    (answer,) = call(app, ("POST", "/v1/recommend", {"user_id": 1000}))
    assert answer.json()["degraded"] == ["events"] and answer.json()["fallback"] == "popularity"


def test_an_event_that_the_bundle_has_counts_once(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store))
    (before,) = call(app, ("GET", "/v1/users/1003/history", None))
    known = before.json()["events"]
    again = [
        {"event_id": str(place), "user_id": 1003, "item_id": event["item_id"], "timestamp_ms": event["timestamp_ms"]}
        for place, event in enumerate(known)
    ]
    new = {"event_id": "new", "user_id": "1003", "item_id": 7}
    kept, after = call(app, ("POST", "/v1/events", {"events": [*again, new]}), ("GET", "/v1/users/1003/history", None))
    assert kept.json()["accepted"] == len(known) + 1 and len(after.json()["events"]) == len(known) + 1
    assert after.json()["events"][0]["item_id"] == 7


def test_events_of_a_bundle_with_other_ids_are_left_out(bundle: Bundle, store: SqliteEventStore) -> None:
    strangers = [Event("a", "4", "an item with a name", "view", 5), Event("b", "4", "7", "unheard of", 6)]
    asyncio.run(store.append([*strangers, Event("c", "4", "7", "view", 7)]))
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store))
    (found,) = call(app, ("GET", "/v1/users/4/history", None))
    assert [event["timestamp_ms"] for event in found.json()["events"]] == [7]


def test_who_was_served_is_not_in_the_log(bundle: Bundle, store: SqliteEventStore, tmp_path: Path) -> None:
    path = tmp_path / "served.jsonl"
    log = ServedLog(path)
    config = validate(ServingConfig, {"log": {"file": str(path)}}, "test")
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, config, store, log)
    place = {"place": {"latitude": 48.856613, "longitude": 2.352222}}

    async def main() -> None:
        for user_id in (1000, 1000, 1001, None):
            await recommender.recommend(RecommendRequest.model_validate({"user_id": user_id, "context": place, "k": 3}))
            await asyncio.sleep(0.05)  # the identity is written beside the answer

    asyncio.run(main())
    log.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    identities = [line["identity"] for line in lines]
    assert identities[0] == identities[1] != identities[2] and identities[3] is None and len(identities[0]) == 24
    assert all(line["near"] == [48.9, 2.4] and len(line["items"]) == 3 for line in lines) and lines[3]["fallback"] == "popularity"
    assert "48.85" not in path.read_text(encoding="utf-8") and '"user' not in path.read_text(encoding="utf-8")
