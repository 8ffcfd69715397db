"""Waits that poll a condition with a generous limit, and stand-ins for dependencies that are slow.

These are the only sleeps of the tests.
A fixed time that is long enough on a quiet machine fails on a busy one.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
Message = str | Callable[[], object]

LIMIT_S = 60.0
"""Enough for a machine that is busy with something else."""
INTERVAL_S = 0.01
FOREVER_S = 3600.0
"""Longer than any test."""


def eventually(
    condition: Callable[[], T],
    message: Message = "the condition did not hold",
    *,
    timeout_s: float = LIMIT_S,
    interval_s: float = INTERVAL_S,
) -> T:
    """Returns the first truthy value of a condition.

    Raises:
        AssertionError: there was none within the limit; `message` says so.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        _require_time(deadline_s, timeout_s, message)
        time.sleep(interval_s)
    return value


async def eventually_async(
    condition: Callable[[], T | Awaitable[T]],
    message: Message = "the condition did not hold",
    *,
    timeout_s: float = LIMIT_S,
    interval_s: float = INTERVAL_S,
) -> T:
    """Returns the first truthy value of a condition, which may be a coroutine function; others run meanwhile.

    Raises:
        AssertionError: there was none within the limit; `message` says so.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        value: T = await found if inspect.isawaitable(found) else found
        if value:
            return value
        _require_time(deadline_s, timeout_s, message)
        await asyncio.sleep(interval_s)


def throughout(condition: Callable[[], object], seconds: float) -> None:
    """Asserts that a condition holds, and goes on holding for a time: nothing happens that must not."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        assert condition()
        time.sleep(INTERVAL_S)


def slow_call(seconds: float = FOREVER_S) -> None:
    """Stands for a dependency that blocks its thread."""
    time.sleep(seconds)


async def slow_answer(seconds: float = FOREVER_S) -> None:
    """Stands for a dependency that answers late, or never."""
    await asyncio.sleep(seconds)


def _require_time(deadline_s: float, timeout_s: float, message: Message) -> None:
    text = message() if callable(message) else message
    assert time.monotonic() < deadline_s, f"after {timeout_s:g} s: {text}"
