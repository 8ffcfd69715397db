"""Retries and the circuit breaker."""

import asyncio
import pickle
from typing import Any

import pytest

from passerelle.bundle import Bundle
from serving.api.app import build_app
from serving.recommender import Recommender
from serving.triton.client import TritonError
from serving.triton.inference import InferenceError
from serving.triton.resilience import ATTEMPTS, OPEN, CircuitBreaker, ResilientInference
from tests.serving.conftest import recommender_of
from tests.support.asgi import recommend
from tests.support.inference import HangingInference, OnnxInference


class Failing:
    """Raises the given codes one after the other; None is an answer."""

    def __init__(self, *codes: str | None) -> None:
        self.codes = list(codes)
        self.calls = 0
        self.timeouts_s: list[float] = []

    async def infer(self, model: str, version: int, inputs: Any, timeout_s: float = 2.0) -> Any:
        self.calls += 1
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
    """Returns `ok`, or the code of the error."""

    async def main() -> str:
        try:
            await inference.infer("ranker", 1, {}, timeout_s)
        except InferenceError as error:
            return error.code
        return "ok"

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("codes", "outcome", "calls"),
    [
        ((), "ok", 1),
        (("UNAVAILABLE",), "ok", 2),
        (("UNAVAILABLE", "UNAVAILABLE"), "ok", 3),
        (("UNAVAILABLE",) * 3, "UNAVAILABLE", ATTEMPTS),
        (("DEADLINE_EXCEEDED",), "DEADLINE_EXCEEDED", 1),
        (("INVALID_ARGUMENT",), "INVALID_ARGUMENT", 1),
    ],
)
def test_only_unavailable_is_retried(codes: tuple[str, ...], outcome: str, calls: int) -> None:
    inference = Failing(*codes)
    assert ask(ResilientInference(inference, seed=1)) == outcome and inference.calls == calls
    assert inference.timeouts_s == sorted(inference.timeouts_s, reverse=True), (
        "each attempt has the time that is left"
    )


def test_no_attempt_without_time() -> None:
    inference = Failing()
    assert ask(ResilientInference(inference), timeout_s=0.0) == "DEADLINE_EXCEEDED" and inference.calls == 0


def test_breaker_opens_probes_and_closes() -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=3, open_s=10.0, clock=lambda: now[0])
    inference = Failing(*["DEADLINE_EXCEEDED"] * 4)
    resilient = ResilientInference(inference, lambda: breaker)
    assert [ask(resilient) for _ in range(5)] == ["DEADLINE_EXCEEDED"] * 3 + [
        OPEN
    ] * 2 and inference.calls == 3
    now[0] = 10.1
    assert ask(resilient) == "DEADLINE_EXCEEDED", "the probe fails"
    assert ask(resilient) == OPEN and breaker.is_open
    now[0] = 20.3
    assert [ask(resilient) for _ in range(3)] == ["ok"] * 3 and not breaker.is_open


def test_short_timeouts_do_not_open_the_breaker() -> None:
    resilient = ResilientInference(Failing(*["DEADLINE_EXCEEDED"] * 20))
    assert [ask(resilient, timeout_s=0.05) for _ in range(20)] == ["DEADLINE_EXCEEDED"] * 20 and ask(
        resilient
    ) == "ok"


def test_hanging_networks_leave_time_for_an_answer(bundle: Bundle) -> None:
    answer = recommend(
        build_app(recommender_of(bundle, HangingInference(bundle), 7)), {"user_id": 1003, "deadline_ms": 300}
    )
    assert (
        answer.status_code == 200
        and answer.json()["fallback"] == "similar"
        and answer.json()["degraded"] == ["query_encoder"]
    )


def test_each_model_has_its_own_breaker() -> None:
    inference = Failing(*["DEADLINE_EXCEEDED"] * 5)
    resilient = ResilientInference(inference)
    assert [ask(resilient) for _ in range(6)] == ["DEADLINE_EXCEEDED"] * 5 + [OPEN]
    assert asyncio.run(resilient.infer("query_encoder", 1, {})) == {}


def test_errors_can_be_pickled() -> None:
    for error in (
        InferenceError("ranker", "UNAVAILABLE", "gone"),
        TritonError("ranker", "UNAVAILABLE", "gone"),
    ):
        other = pickle.loads(pickle.dumps(error))
        assert type(other) is type(error) and str(other) == str(error) and other.code == "UNAVAILABLE"


def test_invalid_requests_do_not_open_the_breaker() -> None:
    resilient = ResilientInference(Failing(*["INVALID_ARGUMENT"] * 20), lambda: CircuitBreaker(failures=3))
    assert [ask(resilient) for _ in range(20)] == ["INVALID_ARGUMENT"] * 20


class RankerDown(OnnxInference):
    """The query encoder works, the ranker does not."""

    async def infer(self, model: str, *arguments: Any, **options: Any) -> Any:
        if model == "ranker":
            raise InferenceError(model, "UNAVAILABLE", "on purpose")
        return await super().infer(model, *arguments, **options)


def test_order_of_retrieval_without_the_ranker(bundle: Bundle, recommender: Recommender) -> None:
    down = build_app(recommender_of(bundle, RankerDown(bundle), 7))
    body = {"user_id": 1003, "k": 50, "context": {"timestamp_ms": 1_700_000_000_000}}
    answer, full = recommend(down, body).json(), recommend(build_app(recommender), body).json()
    assert answer["degraded"] == ["ranker"] and answer["fallback"] is None and full["degraded"] == []
    assert [item["sources"][0]["rank"] for item in answer["items"]] == list(range(1, 51))
    assert {item["item_id"] for item in answer["items"]} == {item["item_id"] for item in full["items"]}, (
        "the same candidates"
    )
