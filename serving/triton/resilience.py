"""Retries with jitter, and a circuit breaker for each network."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from serving.triton.inference import INFER_TIMEOUT_S, Inference, InferenceError

ATTEMPTS = 3
FIRST_PAUSE_S = 0.01
FAILURES_TO_OPEN = 5
OPEN_S = 0.5
MIN_FAIR_TIMEOUT_S = 0.25
"""A timeout shorter than this says nothing about the server."""
_RETRIED = ("UNAVAILABLE",)
_SERVER_FAULTS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED")
OPEN = "CIRCUIT_OPEN"


class CircuitBreaker:
    """Opens for a while after consecutive failures; then one request probes whether the server works again.

    Args:
        failures: number of consecutive failures that open it.
        open_s: how long it stays open.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        failures: int = FAILURES_TO_OPEN,
        open_s: float = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._closed_again_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a request would be refused now."""
        return self._failures >= self._limit and self._clock() < self._closed_again_at

    def admit(self) -> bool:
        """Returns whether a request may be sent; after the pause, only the first one may."""
        if self._failures < self._limit:
            return True
        if self._clock() < self._closed_again_at:
            return False
        self._closed_again_at = self._clock() + self._open_s
        return True

    def succeeded(self) -> None:
        """Records a success."""
        self._failures = 0

    def failed(self) -> None:
        """Records a failure."""
        self._failures += 1
        if self._failures >= self._limit:
            self._closed_again_at = self._clock() + self._open_s


class ResilientInference:
    """Retries requests within their timeout, and sends none to a network that keeps failing.

    Args:
        inference: runs the networks.
        new_breaker: makes the breaker of each model: a failing model does not stop requests to the others.
        seed: of the jitter.
    """

    def __init__(
        self,
        inference: Inference,
        new_breaker: Callable[[], CircuitBreaker] = CircuitBreaker,
        seed: int | None = None,
    ) -> None:
        self._inference = inference
        self._breakers: defaultdict[str, CircuitBreaker] = defaultdict(new_breaker)
        self._random = random.Random(seed)

    async def infer(
        self,
        model: str,
        version: int,
        inputs: Mapping[str, npt.NDArray[Any]],
        timeout_s: float = INFER_TIMEOUT_S,
    ) -> dict[str, npt.NDArray[Any]]:
        """Runs a network with at most `ATTEMPTS` attempts and `timeout_s` in all.

        Raises:
            InferenceError: of the last attempt, or `CIRCUIT_OPEN`.
        """
        until, breaker = time.monotonic() + timeout_s, self._breakers[model]
        for attempt in range(1, ATTEMPTS + 1):
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise InferenceError(f"{model} version {version}", "DEADLINE_EXCEEDED", "no time is left")
            if not breaker.admit():
                raise _circuit_open(model, version)
            try:
                answer = await self._inference.infer(model, version, inputs, left_s)
            except InferenceError as error:
                # A caller with little time must not open the breaker for the others.
                too_short = error.code == "DEADLINE_EXCEEDED" and left_s < MIN_FAIR_TIMEOUT_S
                if not too_short:
                    breaker.failed() if error.code in _SERVER_FAULTS else breaker.succeeded()
                if error.code not in _RETRIED or attempt == ATTEMPTS:
                    raise
                pause_s = FIRST_PAUSE_S * 2**attempt * self._random.random()
                await asyncio.sleep(min(pause_s, max(0.0, until - time.monotonic())))
            else:
                breaker.succeeded()
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def max_batch_size(self, model: str, version: int, timeout_s: float = INFER_TIMEOUT_S) -> int:
        """Returns the largest number of rows of one request.

        Raises:
            InferenceError: of the inference, or `CIRCUIT_OPEN`.
        """
        if self._breakers[model].is_open:
            raise _circuit_open(model, version)
        return await self._inference.max_batch_size(model, version, timeout_s)

    async def ready(self, model: str, version: int) -> bool:
        """Returns whether this version of the model answers requests."""
        return await self._inference.ready(model, version)


def _circuit_open(model: str, version: int) -> InferenceError:
    return InferenceError(
        f"{model} version {version}", OPEN, "it has failed again and again, and is asked later"
    )
