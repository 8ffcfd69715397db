"""Deadlines of requests."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")
_OVER = "the time of the request is over: ask again, or give a longer deadline_ms"
_MIN_TIMEOUT_S = 1e-4
"""A timeout of zero would cancel a stage that has its answer at once."""


class DeadlineError(Exception):
    """The deadline of a request has passed before there is an answer: HTTP 503."""


class Deadline:
    """The moment by which a request has to be answered, by the monotonic timer of this process.

    Args:
        timeout_ms: time from now.
    """

    def __init__(self, timeout_ms: float) -> None:
        self._at_s = time.perf_counter() + timeout_ms / 1e3

    def left_s(self) -> float:
        """Returns the seconds that are left, at least 0."""
        return max(0.0, self._at_s - time.perf_counter())

    def check(self) -> None:
        """Ends work that nobody waits for any more.

        Raises:
            DeadlineError: the deadline has passed.
        """
        if time.perf_counter() >= self._at_s:
            raise DeadlineError(_OVER)


async def with_deadline(stage: Awaitable[T], deadline: Deadline) -> T:
    """Returns the result of a stage.

    Raises:
        DeadlineError: the stage does not end before the deadline.
    """
    try:
        return await asyncio.wait_for(stage, max(_MIN_TIMEOUT_S, deadline.left_s()))
    except TimeoutError:
        raise DeadlineError(_OVER) from None
