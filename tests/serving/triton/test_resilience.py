"""Retries, the circuit breaker, and traces."""

import asyncio
import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from passerelle.bundle import Bundle
from serving.api.app import build_app
from serving.observability.served_log import ServedLog
from serving.observability.tracing import Tracer
from serving.recommender import Recommender
from serving.triton.client import TritonError
from serving.triton.inference import InferenceError
from serving.triton.resilience import ATTEMPTS, OPEN, CircuitBreaker, ResilientInference
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference
from tests.support.waiting import eventually, slow_answer


class Failing:
    """Answers as told: a code is an error, None an answer."""

    def __init__(self, *codes: str | None) -> None:
        self.codes = list(codes)
        self.asked = 0
        self.timeouts_s: list[float] = []

    async def infer(self, model: str, version: int, inputs: Any, timeout_s: float = 2.0) -> Any:
        self.asked += 1
        self.timeouts_s.append(timeout_s)
        code = self.codes.pop(0) if self.codes else None
        if code is not None:
            raise InferenceError(model, code, "on purpose")
        return {}

    async def max_batch_size(self, model: str, version: int, timeout_s: float = 2.0) -> int:
        return 4

    async def ready(self, model: str, version: int) -> bool:
        return True


def ask(inference: ResilientInference, timeout_s: float = 2.0) -> str:
    """`ok`, or the code of the error."""

    async def main() -> str:
        try:
            await inference.infer("ranker", 1, {}, timeout_s)
        except InferenceError as error:
            return error.code
        return "ok"

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("codes", "outcome", "asked"),
    [
        ((), "ok", 1),
        (("UNAVAILABLE",), "ok", 2),
        (("UNAVAILABLE", "UNAVAILABLE"), "ok", 3),
        (("UNAVAILABLE",) * 3, "UNAVAILABLE", ATTEMPTS),
        (("DEADLINE_EXCEEDED",), "DEADLINE_EXCEEDED", 1),
        (("INVALID_ARGUMENT",), "INVALID_ARGUMENT", 1),
    ],
)
def test_what_is_worth_a_retry(codes: tuple[str, ...], outcome: str, asked: int) -> None:
    inference = Failing(*codes)
    assert ask(ResilientInference(inference, seed=1)) == outcome and inference.asked == asked
    assert inference.timeouts_s == sorted(inference.timeouts_s, reverse=True), (
        "each attempt has the time that is left"
    )


def test_no_attempt_without_time() -> None:
    inference = Failing()
    assert ask(ResilientInference(inference), timeout_s=0.0) == "DEADLINE_EXCEEDED" and inference.asked == 0


def test_the_breaker_opens_lets_one_through_and_closes() -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=3, open_s=10.0, clock=lambda: now[0])
    inference = Failing(*["DEADLINE_EXCEEDED"] * 4)
    resilient = ResilientInference(inference, lambda: breaker)
    assert [ask(resilient) for _ in range(5)] == ["DEADLINE_EXCEEDED"] * 3 + [
        OPEN
    ] * 2 and inference.asked == 3
    now[0] = 10.1
    assert ask(resilient) == "DEADLINE_EXCEEDED", "one finds out that it still fails"
    assert ask(resilient) == OPEN and breaker.is_open
    now[0] = 20.3
    assert [ask(resilient) for _ in range(3)] == ["ok"] * 3 and not breaker.is_open


def test_a_caller_in_a_hurry_does_not_close_the_way_to_others() -> None:
    resilient = ResilientInference(Failing(*["DEADLINE_EXCEEDED"] * 20))
    assert [ask(resilient, timeout_s=0.05) for _ in range(20)] == ["DEADLINE_EXCEEDED"] * 20 and ask(
        resilient
    ) == "ok"


class Hanging(OnnxInference):
    """Answers nothing within any time."""

    async def infer(self, model: str, version: int, inputs: Any, timeout_s: float = 2.0) -> Any:
        await slow_answer(timeout_s)
        raise InferenceError(model, "DEADLINE_EXCEEDED", "it hangs")


def test_networks_that_hang_leave_time_for_an_answer_without_them(bundle: Bundle) -> None:
    answer = post(
        build_app(recommender_of(bundle, Hanging(bundle), 7)), {"user_id": 1003, "deadline_ms": 300}
    )
    assert (
        answer.status_code == 200
        and answer.json()["fallback"] == "similar"
        and answer.json()["degraded"] == ["query_encoder"]
    )


def test_a_full_disk_costs_no_answer(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    log = ServedLog(Path("/dev/full"))
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, log=log))
    assert [post(app, {"user_id": 1003}).status_code for _ in range(3)] == [200] * 3
    assert caplog.text.count("No space left on device") == 1
    log.close()


def test_the_log_goes_on_in_a_new_file_after_a_rotation(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.observability.served_log.ROTATION_CHECK_INTERVAL_S", 0.0)
    log = ServedLog(tmp_path / "log.jsonl")
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, log=log))
    post(app, {"user_id": 1003})
    (tmp_path / "log.jsonl").rename(tmp_path / "log.jsonl.1")
    post(app, {"user_id": 1003})
    post(app, {"user_id": 1003})
    log.close()
    lines = [
        len((tmp_path / name).read_text(encoding="utf-8").splitlines())
        for name in ("log.jsonl.1", "log.jsonl")
    ]
    assert lines == [1, 2]


def test_what_is_done_without_is_in_the_log(bundle: Bundle, tmp_path: Path) -> None:
    log = ServedLog(tmp_path / "log.jsonl")
    post(
        build_app(recommender_of(bundle, Hanging(bundle), 7, log=log)), {"user_id": 1003, "deadline_ms": 300}
    )
    log.close()
    message, served = (
        json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert (
        message["kind"] == "message"
        and message["level"] == "warning"
        and "without the query encoder" in message["message"]
    )
    assert (
        served["kind"] == "served"
        and served["fallback"] == "similar"
        and served["degraded"] == ["query_encoder"]
    )


def test_a_model_that_fails_leaves_the_others_alone() -> None:
    inference = Failing(*["DEADLINE_EXCEEDED"] * 5)
    resilient = ResilientInference(inference)
    assert [ask(resilient) for _ in range(6)] == ["DEADLINE_EXCEEDED"] * 5 + [OPEN]
    assert asyncio.run(resilient.infer("query_encoder", 1, {})) == {}


def test_errors_cross_processes() -> None:
    for error in (
        InferenceError("ranker", "UNAVAILABLE", "gone"),
        TritonError("ranker", "UNAVAILABLE", "gone"),
    ):
        other = pickle.loads(pickle.dumps(error))
        assert type(other) is type(error) and str(other) == str(error) and other.code == "UNAVAILABLE"


def test_a_mistake_of_ours_does_not_open_it() -> None:
    resilient = ResilientInference(Failing(*["INVALID_ARGUMENT"] * 20), lambda: CircuitBreaker(failures=3))
    assert [ask(resilient) for _ in range(20)] == ["INVALID_ARGUMENT"] * 20


class RankerDown(OnnxInference):
    """The query encoder works, the ranker does not."""

    async def infer(self, model: str, *arguments: Any, **options: Any) -> Any:
        if model == "ranker":
            raise InferenceError(model, "UNAVAILABLE", "on purpose")
        return await super().infer(model, *arguments, **options)


def post(app: Any, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/recommend", json=body, headers=headers)

    return asyncio.run(main())


def test_without_the_ranker_the_order_of_retrieval(bundle: Bundle, recommender: Recommender) -> None:
    down = build_app(recommender_of(bundle, RankerDown(bundle), 7))
    body = {"user_id": 1003, "k": 50, "context": {"timestamp_ms": 1_700_000_000_000}}
    answer, full = post(down, body).json(), post(build_app(recommender), body).json()
    assert answer["degraded"] == ["ranker"] and answer["fallback"] is None and full["degraded"] == []
    assert [item["sources"][0]["rank"] for item in answer["items"]] == list(range(1, 51))
    assert {item["item_id"] for item in answer["items"]} == {item["item_id"] for item in full["items"]}, (
        "the same candidates"
    )


def test_spans_of_a_request_and_its_stages(bundle: Bundle) -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(None, exporter=exporter)
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, tracer=tracer)
    caller = "0af7651916cd43dd8448eb211c80319c"
    post(build_app(recommender), {"user_id": 1003}, {"traceparent": f"00-{caller}-b7ad6b7169203331-01"})
    tracer.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"recommend", "lookup", "retrieval", "ranking", "ordering"}
    assert all(f"{span.context.trace_id:032x}" == caller for span in spans.values() if span.context)
    request = spans["recommend"]
    assert request.context is not None
    assert all(
        span.parent and span.parent.span_id == request.context.span_id
        for name, span in spans.items()
        if name != "recommend"
    )
    assert request.attributes is not None
    assert request.attributes["playlist"] == "default" and not any(
        "1003" in str(value) for value in request.attributes.values()
    )


def test_spans_reach_a_collector(bundle: Bundle) -> None:
    received: list[tuple[str, int]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, len(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tracer = Tracer(f"http://127.0.0.1:{server.server_port}")
        post(build_app(recommender_of(bundle, OnnxInference(bundle), 7, tracer=tracer)), {"user_id": 1003})
        tracer.close()
        eventually(lambda: received)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert received and received[0][0] == "/v1/traces" and received[0][1] > 100
