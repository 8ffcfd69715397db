"""Admission of requests: keys, rates, concurrency and body sizes, before anything is computed."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from passerelle.errors import UserError
from serving.api.admission import LARGE_BYTES, MAX_MONITORING, read_keys
from serving.api.app import build_app
from serving.config import LimitsConfig, ServingConfig
from serving.events.base import Event
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from serving.triton.inference import InferenceError
from tests.serving.conftest import recommender_of
from tests.support.asgi import with_client
from tests.support.inference import OnnxInference
from tests.support.waiting import slow_answer


def app_with(bundle: Bundle, inference: Any = None, **limits: Any) -> Any:
    config = validate(ServingConfig, {"limits": limits}, "test")
    return build_app(recommender_of(bundle, inference or OnnxInference(bundle), 7, config))


def test_requests_without_a_known_key_are_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("first key\n\nsecond\n", encoding="utf-8")
    app = app_with(bundle, api_keys_file=str(keys))
    compared: list[bytes] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(other) or real(one, other))

    async def work(client: httpx.AsyncClient) -> list[int]:
        found = []
        for header in (
            None,
            "Bearer first key",
            "Bearer second",
            "Bearer third",
            "second",
            "Bearer ",
            "Bearer \xff",
            "bearer second",
            "BEARER  second",
            "bearer third",
        ):
            headers = {} if header is None else {"authorization": header.encode("latin-1")}
            found.append((await client.post("/v1/recommend", json={}, headers=headers)).status_code)
        found += [
            (await client.get(path)).status_code
            for path in ("/healthz", "/metrics", "/readyz", "/", "/v1/items/7", "/docs")
        ]
        return found

    statuses = with_client(app, work)
    assert statuses[:10] == [401, 200, 200, 401, 200, 401, 401, 200, 200, 401], (
        "the scheme is compared without case"
    )
    assert statuses[10:] == [200, 200, 200, 200, 401, 401]
    assert compared.count(b"first key") == compared.count(b"second"), (
        "all keys are compared, also after a match"
    )


def test_key_files_with_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert read_keys(tmp_path / "keys") == (b"first", b"second")
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbf\r\n")
    with pytest.raises(UserError, match="no API key in it"):
        read_keys(tmp_path / "keys")


def test_missing_and_empty_key_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "absent")
    (tmp_path / "empty").write_text(" \n", encoding="utf-8")
    with pytest.raises(UserError, match="no API key in it"):
        read_keys(tmp_path / "empty")


def test_large_bodies_are_refused_without_content_length_too(bundle: Bundle) -> None:
    app = app_with(bundle, max_body_bytes=1000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async def work(client: httpx.AsyncClient) -> list[int]:
        said = await client.post("/v1/recommend", content=b"{}" + b" " * 2000)
        silent = await client.post("/v1/recommend", content=chunks())
        odd = await client.post("/v1/recommend", content=b"{}", headers={"content-length": "two"})
        fits = await client.post("/v1/recommend", json={})
        return [said.status_code, silent.status_code, odd.status_code, fits.status_code]

    assert with_client(app, work) == [413, 413, 413, 200]


def test_rate_limit_applies_to_each_caller_separately(bundle: Bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("a\nb\n", encoding="utf-8")
    app = app_with(bundle, api_keys_file=str(keys), requests_per_s=3)

    async def work(client: httpx.AsyncClient) -> list[Any]:
        mine = [await client.get("/v1/items/7", headers={"authorization": "Bearer a"}) for _ in range(5)]
        other = await client.get("/v1/items/7", headers={"authorization": "Bearer b"})
        return [[answer.status_code for answer in mine], other.status_code, mine[-1].headers["retry-after"]]

    assert with_client(app, work) == [[200, 200, 200, 429, 429], 200, "1"]


SLOW_S = 0.3


class Slow(OnnxInference):
    """Networks that take 0.1 s."""

    async def infer(self, model: str, version: int, inputs: Any, timeout_s: float = 2.0) -> Any:
        await slow_answer(min(SLOW_S, timeout_s))
        if timeout_s < SLOW_S:
            raise InferenceError(model, "DEADLINE_EXCEEDED", "slow on purpose")
        return await super().infer(model, version, inputs, timeout_s)


def test_requests_above_max_in_flight_are_refused(bundle: Bundle) -> None:
    app = app_with(bundle, Slow(bundle), max_in_flight=5)

    async def work(client: httpx.AsyncClient) -> list[int]:
        answers = await asyncio.gather(
            *(client.post("/v1/recommend", json={"user_id": 1003}) for _ in range(30))
        )
        after = await client.post("/v1/recommend", json={"user_id": 1003})
        health = await client.get("/healthz")
        return [*(answer.status_code for answer in answers), after.status_code, health.status_code]

    statuses = with_client(app, work)
    assert statuses[:-2].count(200) == 5 and statuses[:-2].count(429) == 25 and statuses[-2:] == [200, 200]


def test_large_bodies_leave_time_for_other_requests(bundle: Bundle) -> None:
    app = app_with(bundle, max_large_bytes_per_s=1000, max_body_bytes=3 * LARGE_BYTES)
    large = b"{}" + b" " * 2 * LARGE_BYTES

    async def chunks() -> AsyncIterator[bytes]:
        yield large

    async def work(client: httpx.AsyncClient) -> list[int]:
        bodies: list[Any] = [large, large, chunks(), b"{}" + b" " * (LARGE_BYTES // 2), b"{}"]
        headers = {"content-type": "application/json"}
        return [
            (await client.post("/v1/recommend", content=body, headers=headers)).status_code for body in bodies
        ]

    assert with_client(app, work) == [200, 429, 429, 200, 200]


class Unready(OnnxInference):
    """Networks that do not say for a while whether they are ready."""

    async def ready(self, *_arguments: Any) -> bool:
        await slow_answer(SLOW_S)
        return True


def test_monitoring_is_limited_apart_from_everything_else(bundle: Bundle) -> None:
    app = app_with(bundle, Unready(bundle))

    async def work(client: httpx.AsyncClient) -> list[int]:
        probes = [asyncio.ensure_future(client.get("/readyz")) for _ in range(MAX_MONITORING + 9)]
        await asyncio.wait(probes, return_when=asyncio.FIRST_COMPLETED)
        others = [await client.get(path) for path in ("/metrics", "/healthz", "/", "/v1/items/7")]
        answers = await asyncio.gather(*probes)
        return [*(answer.status_code for answer in answers), *(answer.status_code for answer in others)]

    statuses = with_client(app, work)
    assert statuses[:-4].count(200) == MAX_MONITORING and statuses[:-4].count(429) == 9
    assert statuses[-4:] == [429, 200, 200, 200]
    assert with_client(app, lambda client: client.get("/metrics")).status_code == 200


class HangingStore(SqliteEventStore):
    """Neither writes nor erases while the test lasts."""

    async def append(self, events: Sequence[Event]) -> int:
        await slow_answer()
        raise AssertionError

    async def erase(self, user_id: str) -> int:
        return await self.append(())


@pytest.mark.parametrize("write", ["events", "erasures"])
def test_hanging_store_limits_only_requests_that_need_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    monkeypatch.setattr("serving.events.intake.WRITE_TIMEOUT_S", 3600.0)
    config = validate(ServingConfig, {"limits": {"max_in_flight": 3}}, "test")
    store = HangingStore(tmp_path / "events.sqlite")
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, config), EventIntake(bundle, store))

    async def work(client: httpx.AsyncClient) -> list[int]:
        event = {"event_id": "a", "user_id": 1003, "item_id": 7}

        def one() -> Any:
            return (
                client.post("/v1/events", json={"events": [event]})
                if write == "events"
                else client.delete("/v1/users/1003")
            )

        waiting = [asyncio.ensure_future(one()) for _ in range(3)]
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
        answers = [
            await client.post("/v1/events", json={"events": [event]}),
            await client.delete("/v1/users/1003"),
            *[await client.get("/v1/items/7") for _ in range(5)],
            await client.post("/v1/recommend", json={"user_id": 1003}),
        ]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await store.close()
        return [answer.status_code for answer in answers]

    assert with_client(app, work) == [429, 429, *[200] * 5, 200]


def test_cors_allows_only_configured_origins(bundle: Bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("a\n", encoding="utf-8")
    asks = {
        "origin": "https://shop.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }

    async def preflight(client: httpx.AsyncClient) -> httpx.Response:
        return await client.options("/v1/recommend", headers=asks)

    assert "access-control-allow-origin" not in with_client(app_with(bundle), preflight).headers
    allowed = with_client(
        app_with(bundle, allowed_origins=["https://shop.example"], api_keys_file=str(keys)), preflight
    )
    assert (
        allowed.status_code == 200
        and allowed.headers["access-control-allow-origin"] == "https://shop.example"
    )
    other = with_client(app_with(bundle, allowed_origins=["https://other.example"]), preflight)
    assert "access-control-allow-origin" not in other.headers


def test_short_deadlines_skip_the_ranker_or_answer_503(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without time for the ranker the order is that of retrieval; without time for candidates it is a 503."""
    recommender = recommender_of(bundle, Slow(bundle), 7)
    retrieve = recommender.stages.retrieval.run

    async def slowly(*arguments: Any) -> Any:
        await slow_answer(5)
        return await retrieve(*arguments)

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [{"user_id": 1003, "deadline_ms": ms} for ms in (10_000, int(1900 * SLOW_S))]
        answers = [await client.post("/v1/recommend", json=body) for body in bodies]
        monkeypatch.setattr(recommender.stages.retrieval, "run", slowly)
        return [*answers, await client.post("/v1/recommend", json=bodies[1])]

    full, short, none = with_client(build_app(recommender), work)
    assert (
        full.json()["degraded"] == [] and short.json()["degraded"] == ["ranker"] and short.status_code == 200
    )
    scores = [item["sources"][0]["score"] for item in short.json()["items"]]
    assert scores == sorted(scores, reverse=True)
    assert (
        none.status_code == 503
        and none.headers["retry-after"] == "1"
        and "time of the request is over" in none.text
    )


def test_limits_are_off_by_default() -> None:
    assert (
        LimitsConfig().allowed_origins == ()
        and LimitsConfig().api_keys_file is None
        and LimitsConfig().requests_per_s is None
    )
