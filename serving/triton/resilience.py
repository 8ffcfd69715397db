"""Networks that fail now and then: retries with jitter, and a circuit breaker that spares a server that is down."""

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
FAIR_S = 0.25
"""A server that does not answer within so much time is at fault."""
_WORTH_A_RETRY = ("UNAVAILABLE",)
_SERVERS_FAULT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED")
OPEN = "CIRCUIT_OPEN"


class CircuitBreaker:
    """After some failures in a row nothing is asked for a while; then one request finds out whether it works again.

    Args:
        failures: how many in a row.
        open_s: for how long.
        clock: seconds that only grow.
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
        """Whether to ask; of those who come after the pause, the first alone may."""
        if self._failures < self._limit:
            return True
        if self._clock() < self._closed_again_at:
            return False
        self._closed_again_at = self._clock() + self._open_s
        return True

    def succeeded(self) -> None:
        """It works."""
        self._failures = 0

    def failed(self) -> None:
        """It does not."""
        self._failures += 1
        if self._failures >= self._limit:
            self._closed_again_at = self._clock() + self._open_s


class ResilientInference:
    """Asks again where an answer may come, within the time there is, and no more where none comes.

    Args:
        inference: what is asked.
        new_breaker: makes one for each model: one that fails does not close the way to the others.
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
        """As the inference itself, at most `ATTEMPTS` times and `timeout_s` in all.

        Raises:
            InferenceError: of the last attempt, or `CIRCUIT_OPEN`.
        """
        until, breaker = time.monotonic() + timeout_s, self._breakers[model]
        for attempt in range(1, ATTEMPTS + 1):
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise InferenceError(f"{model} version {version}", "DEADLINE_EXCEEDED", "no time is left")
            if not breaker.admit():
                raise InferenceError(
                    f"{model} version {version}", OPEN, "it has failed again and again, and is asked later"
                )
            try:
                answer = await self._inference.infer(model, version, inputs, left_s)
            except InferenceError as error:
                hurried = error.code == "DEADLINE_EXCEEDED" and left_s < FAIR_S
                if not hurried:  # whoever gives too little time learns nothing of the server, and must not close it to others
                    breaker.failed() if error.code in _SERVERS_FAULT else breaker.succeeded()
                if error.code not in _WORTH_A_RETRY or attempt == ATTEMPTS:
                    raise
                pause_s = FIRST_PAUSE_S * 2**attempt * self._random.random()
                await asyncio.sleep(min(pause_s, max(0.0, until - time.monotonic())))
            else:
                breaker.succeeded()
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def max_batch_size(self, model: str, version: int, timeout_s: float = INFER_TIMEOUT_S) -> int:
        """As the inference itself; not asked where the breaker is open.

        Raises:
            InferenceError: of the inference, or `CIRCUIT_OPEN`.
        """
        if self._breakers[model].is_open:
            raise InferenceError(
                f"{model} version {version}", OPEN, "it has failed again and again, and is asked later"
            )
        return await self._inference.max_batch_size(model, version, timeout_s)

    async def ready(self, model: str, version: int) -> bool:
        """As the inference itself."""
        return await self._inference.ready(model, version)
