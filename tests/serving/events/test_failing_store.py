"""Answers while the event store is down: without events, and without data of erased users."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.api.app import build_app
from serving.config import ServingConfig
from serving.events.base import EMPTY_USER, ErasedUsers, EventStoreError, UserState, user_digest
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from tests.serving.conftest import recommender_of
from tests.support.asgi import call_all, open_client
from tests.support.inference import OnnxInference
from tests.support.waiting import eventually_async, slow_answer


class Breaking:
    """A store that has erased user 1001, and fails or hangs when it is `broken`."""

    def __init__(self, hang_s: float = 0.0) -> None:
        self._hang_s = hang_s
        self.broken = False
        self.erased_here: set[str] = set()
        self.erasures_were_read = False

    async def user(self, *_arguments: Any) -> UserState:
        if self.broken:
            await self._fail()
        return EMPTY_USER

    async def erased_after(self, position: int, _limit: int) -> ErasedUsers:
        if self.broken:
            await self._fail()
        self.erasures_were_read = True
        return ErasedUsers((user_digest("1001"),) if position == 0 else (), 1, True)

    async def _fail(self, *_arguments: Any) -> Any:
        await slow_answer(self._hang_s)
        raise EventStoreError("the event server does not answer: gone")

    append = assign_pseudonym = erase = ping = _fail

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("hang_s", [0.0, 30.0])
def test_answers_without_a_failing_store(bundle: Bundle, hang_s: float) -> None:
    store: Any = Breaking(hang_s)
    config = validate(ServingConfig, {"events": {"timeout_ms": 50}}, "test")
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, config, store), EventIntake(bundle, store)
    )
    known, forgotten = (
        ("POST", "/v1/recommend", {"user_id": user_id, "deadline_ms": 5000}) for user_id in (1000, 1001)
    )

    async def main() -> list[httpx.Response]:
        async with open_client(app) as client:
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
    assert erased.json()["degraded"] == ["events"] and erased.json()["fallback"] == "popular", "still erased"
    if others:
        kept, ready = others
        assert kept.status_code == 503 and kept.headers["retry-after"] == "1"
        assert ready.json()["checks"] == {"networks": True, "events": False}


def test_every_user_counts_as_erased_until_erasures_were_read(bundle: Bundle) -> None:
    store: Any = Breaking()
    store.broken = True
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (answer,) = call_all(app, ("POST", "/v1/recommend", {"user_id": 1000}))
    assert answer.json()["degraded"] == ["events"] and answer.json()["fallback"] == "popular"


@pytest.mark.parametrize("here", [True, False])
def test_erased_user_stays_unknown_while_the_store_is_down(
    bundle: Bundle, store: SqliteEventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """An erasure by this process counts at once, one by another process when erasures were read again."""
    monkeypatch.setattr("serving.events.erasure_list.REFRESH_INTERVAL_S", 0.05)
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    ask = {"user_id": 1000, "deadline_ms": 5000}

    read: list[tuple[str, ...]] = []
    read_erased = store.erased_after

    async def noted(position: int, limit: int) -> ErasedUsers:
        page = await read_erased(position, limit)
        read.append(page.digests)
        return page

    async def fail(*_arguments: Any) -> UserState:
        raise EventStoreError("gone")

    monkeypatch.setattr(store, "erased_after", noted)

    async def main() -> tuple[Any, Any]:
        async with open_client(app) as client:
            before = await client.post("/v1/recommend", json=ask)
            await eventually_async(lambda: read)
            if here:
                await client.delete("/v1/users/1000")
            else:
                other = SqliteEventStore(tmp_path / "events.sqlite")
                await other.erase("1000")
                await other.close()
                await eventually_async(lambda: read[-1] == (user_digest("1000"),))
                await eventually_async(lambda: read[-1] == ())
            monkeypatch.setattr(store, "user", fail)
            return before.json(), (await client.post("/v1/recommend", json=ask)).json()

    before, after = asyncio.run(main())
    assert before["fallback"] is None and after["degraded"] == ["events"] and after["fallback"] == "popular"
