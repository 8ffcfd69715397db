"""Limits on how many requests run at a time, and on how many a caller may send."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MIN_CONCURRENCY = 4
"""Requests that are admitted whatever they cost: costs are learned from requests that ran."""
SMOOTHING = 0.05
_MAX_CALLERS = 100_000


class ConcurrencyLimiter:
    """Counts the requests in flight and says whether one more would be answered in time.

    Requests slow each other down.
    The cost of a request is therefore its duration divided by the number in flight when it was admitted.

    Args:
        max_in_flight: requests at a time, whatever they cost.
        max_expected_ms: expected duration up to which one more is admitted.
        clock: monotonic seconds.
        num_abandoned: returns how many requests have ended but still use a thread; they count as in flight.
    """

    def __init__(
        self,
        max_in_flight: int,
        max_expected_ms: float,
        clock: Callable[[], float] = time.monotonic,
        num_abandoned: Callable[[], int] = lambda: 0,
    ) -> None:
        self._num_abandoned = num_abandoned
        self._max_in_flight = max_in_flight
        self._max_expected_s = max_expected_ms / 1e3
        self._clock = clock
        self._cost_s = 0.0
        self.in_flight = 0

    def has_capacity(self) -> bool:
        """Returns whether one more request may be admitted."""
        in_flight = self.in_flight + self._num_abandoned()
        if in_flight >= self._max_in_flight:
            return False
        return in_flight < MIN_CONCURRENCY or (in_flight + 1) * self._cost_s <= self._max_expected_s

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request as in flight for as long as the block lasts."""
        self.in_flight += 1
        concurrency, started = self.in_flight, self._clock()
        try:
            yield
        finally:
            self.in_flight -= 1
            cost_s = (self._clock() - started) / concurrency
            self._cost_s += SMOOTHING * (cost_s - self._cost_s)


class RateLimiter:
    """A token bucket for each caller, which holds what one second may bring; idle callers are forgotten.

    Args:
        per_s: requests, or bytes, of one caller.
        max_amount: the largest amount of one request; a bucket holds at least as much.
        clock: monotonic seconds.
    """

    def __init__(
        self, per_s: float, clock: Callable[[], float] = time.monotonic, max_amount: float = 1.0
    ) -> None:
        self._rate = per_s
        self._max_tokens = max(max_amount, per_s)
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def admit(self, caller: bytes, amount: float = 1.0) -> bool:
        """Takes so many tokens, and returns whether there were as many."""
        tokens, now = self._tokens(caller), self._clock()
        self._buckets.pop(caller, None)
        admitted = tokens >= amount
        self._buckets[caller] = (tokens - amount if admitted else tokens, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return admitted

    def has(self, caller: bytes, amount: float = 1.0) -> bool:
        """Returns whether there are so many tokens, and takes none."""
        return self._tokens(caller) >= amount

    def _tokens(self, caller: bytes) -> float:
        now = self._clock()
        tokens, since = self._buckets.get(caller, (self._max_tokens, now))
        return min(self._max_tokens, tokens + (now - since) * self._rate)
