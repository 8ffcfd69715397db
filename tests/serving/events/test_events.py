"""Live events through the chain and over HTTP, and a store that breaks."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.api.app import build_app
from serving.config import ServingConfig
from serving.events.base import EMPTY_USER, Event, EventStoreError, UserState, user_digest
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from serving.observability.served_log import ServedLog
from serving.schemas.recommend import RecommendRequest
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference
from tests.support.waiting import eventually_async, slow_answer


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
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    ask = ("POST", "/v1/recommend", {"user_id": 4_000, "k": 5})
    clicks = {"events": [{"event_id": str(item), "user_id": 4_000, "item_id": item} for item in (7, 17, 27)]}
    cold, kept, warm, again = call(
        app, ask, ("POST", "/v1/events", clicks), ask, ("POST", "/v1/events", clicks)
    )
    assert cold.json()["fallback"] == "popular" and warm.json()["fallback"] is None
    assert (
        kept.status_code == 202
        and kept.json() == {"accepted": 3, "duplicates": 0}
        and again.json() == {"accepted": 0, "duplicates": 3}
    )
    assert not {7, 17, 27} & {item["item_id"] for item in warm.json()["items"]}
    given, same = call(
        app,
        ("POST", "/v1/recommend", {"user_id": 1000, "k": 5}),
        ("POST", "/v1/events", {"event_id": "x", "user_id": 1000, "item_id": 47}),
    )
    (after,) = call(app, ("POST", "/v1/recommend", {"user_id": 1000, "k": 5}))
    assert same.status_code == 202 and given.json()["items"] != after.json()["items"]


def test_an_erased_user_is_a_stranger(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    click = ("POST", "/v1/events", {"event_id": "x", "user_id": 1000, "item_id": 47})
    ask = ("POST", "/v1/recommend", {"user_id": 1000})
    known, _, gone, stranger = call(app, ask, click, ("DELETE", "/v1/users/1000", None), ask)
    assert (
        known.json()["fallback"] is None
        and gone.json() == {"events": 1}
        and stranger.json()["fallback"] == "popular"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"event_id": "x", "user_id": 1000}, "an event has event_id, user_id and item_id"),
        (
            {
                "event_id": "x",
                "user_id": 1000,
                "item_id": 7,
                "events": [{"event_id": "y", "user_id": 1, "item_id": 7}],
            },
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
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (answer,) = call(app, ("POST", "/v1/events", body))
    assert answer.status_code == 422 and any(
        message in problem["msg"] for problem in answer.json()["detail"]
    ), answer.text


class Breaking:
    """A store that works, has erased user 1001, and then is down or hangs."""

    def __init__(self, hang_s: float = 0.0) -> None:
        self._hang_s = hang_s
        self.broken = False
        self.erased_here: set[str] = set()
        self.erasures_were_read = False

    async def user(self, *_arguments: Any) -> UserState:
        if self.broken:
            await self._fail()
        return EMPTY_USER

    async def erased(self) -> frozenset[str]:
        if self.broken:
            await self._fail()
        self.erasures_were_read = True
        return frozenset({user_digest("1001")})

    async def _fail(self, *_arguments: Any) -> Any:
        await slow_answer(self._hang_s)
        raise EventStoreError("the event server does not answer: gone")

    append = assign_pseudonym = erase = ping = _fail

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("hang_s", [0.0, 30.0])
def test_a_store_that_is_down_is_done_without(bundle: Bundle, hang_s: float) -> None:
    store: Any = Breaking(hang_s)
    config = validate(ServingConfig, {"events": {"timeout_ms": 50}}, "test")
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, config, store), EventIntake(bundle, store)
    )
    known, forgotten = (
        ("POST", "/v1/recommend", {"user_id": user_id, "deadline_ms": 5000}) for user_id in (1000, 1001)
    )

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.post("/v1/recommend", json=known[2])
            await eventually_async(lambda: store.erasures_were_read)
            store.broken = True
            answers = [
                await client.request(method, path, json=body) for method, path, body in (known, forgotten)
            ]
            if hang_s:
                return answers
            event_ = {"event_id": "x", "user_id": 1000, "item_id": 7}
            return [*answers, await client.post("/v1/events", json=event_), await client.get("/readyz")]

    answer, erased, *others = asyncio.run(main())
    assert (
        answer.status_code == 200
        and answer.json()["degraded"] == ["events"]
        and answer.json()["fallback"] is None
    )
    assert erased.json()["degraded"] == ["events"] and erased.json()["fallback"] == "popular", (
        "forgotten, also now"
    )
    if others:
        kept, ready = others
        assert kept.status_code == 503 and kept.headers["retry-after"] == "1"
        assert ready.json()["checks"] == {"networks": True, "events": False}


def test_of_whom_it_is_not_known_whether_they_are_erased_nothing_is_known(bundle: Bundle) -> None:
    store: Any = Breaking()
    store.broken = True
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (answer,) = call(app, ("POST", "/v1/recommend", {"user_id": 1000}))
    assert answer.json()["degraded"] == ["events"] and answer.json()["fallback"] == "popular"


@pytest.mark.parametrize("here", [True, False])
def test_who_was_erased_a_moment_ago_is_a_stranger_also_without_the_store(
    bundle: Bundle, store: SqliteEventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """By this process; or by another one, as soon as it was read who is erased."""
    monkeypatch.setattr("serving.stages.user_history.ERASURE_REFRESH_INTERVAL_S", 0.05)
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    ask = {"user_id": 1000, "deadline_ms": 5000}

    read: list[frozenset[str]] = []
    read_erased = store.erased

    async def noted() -> frozenset[str]:
        read.append(await read_erased())
        return read[-1]

    async def fail(*_arguments: Any) -> UserState:
        raise EventStoreError("gone")

    monkeypatch.setattr(store, "erased", noted)

    async def main() -> tuple[Any, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            before = await client.post("/v1/recommend", json=ask)
            await eventually_async(lambda: read)
            if here:
                await client.delete("/v1/users/1000")
            else:
                other = SqliteEventStore(tmp_path / "events.sqlite")
                await other.erase("1000")
                await other.close()
                await eventually_async(lambda: user_digest("1000") in read[-1])
            monkeypatch.setattr(store, "user", fail)
            return before.json(), (await client.post("/v1/recommend", json=ask)).json()

    before, after = asyncio.run(main())
    assert before["fallback"] is None and after["degraded"] == ["events"] and after["fallback"] == "popular"


def test_an_event_that_the_bundle_has_counts_once(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (before,) = call(app, ("GET", "/v1/users/1003/history", None))
    known = before.json()["events"]
    again = [
        {
            "event_id": str(place),
            "user_id": 1003,
            "item_id": event["item_id"],
            "timestamp_ms": event["timestamp_ms"],
        }
        for place, event in enumerate(known)
    ]
    new = {"event_id": "new", "user_id": "1003", "item_id": 7}
    kept, after = call(
        app, ("POST", "/v1/events", {"events": [*again, new]}), ("GET", "/v1/users/1003/history", None)
    )
    assert kept.json()["accepted"] == len(known) + 1 and len(after.json()["events"]) == len(known) + 1
    assert after.json()["events"][0]["item_id"] == 7


def test_events_of_a_bundle_with_other_ids_are_left_out(bundle: Bundle, store: SqliteEventStore) -> None:
    strangers = [Event("a", "4", "an item with a name", "view", 5), Event("b", "4", "7", "unheard of", 6)]
    asyncio.run(store.append([*strangers, Event("c", "4", "7", "view", 7)]))
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (found,) = call(app, ("GET", "/v1/users/4/history", None))
    assert [event["timestamp_ms"] for event in found.json()["events"]] == [7]


class ErasedMeanwhile(SqliteEventStore):
    """Somebody erases the user whenever a pseudonym is about to be kept."""

    attempts = 0

    async def assign_pseudonym(self, user_id: str, pseudonym: str, erasures: int) -> None:
        await self.erase(user_id)
        await super().assign_pseudonym(user_id, pseudonym, erasures)
        self.attempts += 1


def test_nothing_leads_from_lines_of_the_log_to_a_user_who_was_erased_meanwhile(
    bundle: Bundle, tmp_path: Path
) -> None:
    store = ErasedMeanwhile(tmp_path / "events.sqlite")
    config = validate(ServingConfig, {"log": {"file": str(tmp_path / "served.jsonl")}}, "test")
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, config, store)

    async def main() -> list[UserState]:
        states = []
        for attempts in (1, 2):
            await recommender.recommend(RecommendRequest(user_id=1000, k=3))
            await eventually_async(lambda expected=attempts: store.attempts == expected)
            states.append(await store.user("1000", 10))
        await store.close()
        return states

    assert [(state.erasures, state.pseudonym) for state in asyncio.run(main())] == [(1, None), (2, None)]


def test_who_was_served_is_not_in_the_log(bundle: Bundle, store: SqliteEventStore, tmp_path: Path) -> None:
    path = tmp_path / "served.jsonl"
    log = ServedLog(path)
    config = validate(ServingConfig, {"log": {"file": str(path)}}, "test")
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, config, store, log)
    place = {"place": {"latitude": 48.856613, "longitude": 2.352222}}

    async def has_pseudonym(user_id: str) -> bool:
        return (await store.user(user_id, 1)).pseudonym is not None

    async def main() -> None:
        for user_id in (1000, 1000, 1001, None):
            await recommender.recommend(
                RecommendRequest.model_validate({"user_id": user_id, "context": place, "k": 3})
            )
            if user_id is not None:
                await eventually_async(lambda user=str(user_id): has_pseudonym(user))

    asyncio.run(main())
    log.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pseudonyms = [line["pseudonym"] for line in lines]
    assert (
        pseudonyms[0] == pseudonyms[1] != pseudonyms[2] and pseudonyms[3] is None and len(pseudonyms[0]) == 24
    )
    assert (
        all(line["near"] == [48.9, 2.4] and len(line["items"]) == 3 for line in lines)
        and lines[3]["fallback"] == "popular"
    )
    assert "48.85" not in path.read_text(encoding="utf-8") and '"user' not in path.read_text(encoding="utf-8")
