"""Unexpected errors and large invalid bodies: answers and logs without ids, and of limited size."""

import asyncio
import logging
import threading
from typing import Any

import httpx
import pytest
import uvicorn

from passerelle.bundle import Bundle
from serving import graph
from serving.api.app import build_app
from serving.dependencies import GraphSettings
from serving.recommender import Recommender
from serving.triton.ports import free_ports
from tests.serving.conftest import recommender_of
from tests.support.asgi import call
from tests.support.inference import OnnxInference
from tests.support.playlists import config_with, recommender_with
from tests.support.waiting import eventually

KNOWN_USER = 1003

KNOWN_USER = 1003


def test_unexpected_error_is_counted_and_logged_without_ids(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = recommender_of(bundle, OnnxInference(bundle), 7)

    async def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("user 1003")

    monkeypatch.setattr(recommender.stages.lookup, "run", fail)
    app = build_app(recommender)
    with caplog.at_level(logging.ERROR, "serving"):
        answer = call(app, "POST", "/v1/recommend", raises=False, json={"user_id": KNOWN_USER})
    assert answer.status_code == 500 and "1003" not in answer.text
    assert [
        text for text in caplog.messages if text.startswith("500: KeyError at")
    ] and "1003" not in caplog.text
    assert (
        'passerelle_requests_total{endpoint="recommend",outcome="500"} 1.0'
        in call(app, "GET", "/metrics").text
    )


def test_unexpected_error_of_a_remote_stage_carries_no_ids(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GraphSettings(
        bundle=bundle.path,
        bundle_id=bundle.manifest.bundle_id,
        version=1,
        triton="127.0.0.1:9",
        serving=config_with(events={"store": "none"}, playlists={"p": {"size": 3}}),
    )
    stage = graph.StageReplica("retrieval", settings)

    async def fail(*_: Any) -> None:
        raise KeyError("user 1003")

    monkeypatch.setattr(stage._stage, "run", fail)
    answer, error = asyncio.run(stage.call("run", "request"))
    assert (
        answer is None
        and type(error).__name__ == "StageError"
        and "KeyError at" in str(error)
        and "1003" not in str(error)
    )


def test_server_log_of_an_unexpected_error_has_no_ids(
    bundle: Bundle, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = recommender_of(bundle, OnnxInference(bundle), 7)

    async def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("user 1003")

    monkeypatch.setattr(recommender.stages.lookup, "run", fail)
    (port,) = free_ports(1)
    server = uvicorn.Server(
        uvicorn.Config(build_app(recommender), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/recommend", json={"user_id": KNOWN_USER})
    server.should_exit = True
    thread.join()
    written = capfd.readouterr()
    assert (
        answer.status_code == 500
        and "1003" not in written.err + written.out
        and "Traceback" not in written.err
    )


MANY = 100_000
WITHIN = {"op": "within", "column": "a", "latitude": 1, "longitude": 1, "radius_km": 1}


@pytest.mark.parametrize(
    "body",
    [
        {"filters": [{"op": "in", "column": "kind", "values": [None] * 10_000}] * 36},
        {"filters": [{"op": "in", "column": "kind", "values": ["a"] * 10_000}] * 3},
        {"filters": [{"op": "or", "conditions": [None] * MANY}]},
        {
            "filters": [
                {**WITHIN, "radius_by": {"column": "x", "radii_km": dict.fromkeys(map(str, range(MANY)))}}
            ]
        },
        {"history": [0.5] * MANY},
        {"history": [7] * 50_000, "history_timestamps_ms": [-(10**15)] * 50_000},
        {"similar_to": [None] * MANY},
        dict.fromkeys(map(str, range(MANY)), 0),
        {"context": dict.fromkeys(map(str, range(MANY)), 0)},
        {"user_features": dict.fromkeys(map(str, range(MANY)), 0)},
    ],
    ids=[
        "values",
        "many values",
        "conditions",
        "radii",
        "history",
        "times",
        "similar_to",
        "fields",
        "context",
        "features",
    ],
)
def test_errors_of_large_bodies_are_cut_short(recommender: Recommender, body: dict[str, Any]) -> None:
    """Pydantic makes an object of each error: a body of 2 MB once gave an answer of 144 MB after 24 s."""
    answer = call(build_app(recommender), "POST", "/v1/recommend", json=body)
    assert answer.status_code == 422 and len(answer.content) < 20_000 and len(answer.json()["detail"]) <= 50


def test_disabled_explorer_hides_users_and_histories(bundle: Bundle) -> None:
    app = build_app(recommender_with(bundle, config_with(limits={"explorer": False})))
    for path in ("/", "/v1/explorer", f"/v1/history?user_id={KNOWN_USER}"):
        assert call(app, "GET", path).status_code in (404, 405), path
