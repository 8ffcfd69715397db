"""Token buckets and limits of concurrency, with a clock that the test sets."""

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from serving.api.limiters import MIN_CONCURRENCY, ConcurrencyLimiter, RateLimiter


def test_rate_limiter_refills_up_to_one_second() -> None:
    now = [0.0]
    limiter = RateLimiter(2.0, lambda: now[0])
    assert [limiter.admit(b"a") for _ in range(4)] == [True, True, False, False] and limiter.admit(b"b")
    now[0] = 0.5
    assert [limiter.admit(b"a") for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [limiter.admit(b"a") for _ in range(3)] == [True, True, False]


def test_rate_limiter_of_amounts_admits_the_largest_one() -> None:
    now = [0.0]
    limiter = RateLimiter(10.0, lambda: now[0], max_amount=25)
    assert limiter.has(b"", 25) and limiter.has(b"", 25) and not limiter.has(b"", 26)
    assert [limiter.admit(b"", amount) for amount in (26, 25, 1)] == [False, True, False]
    assert not limiter.has(b"") and limiter.has(b"another", 25)
    now[0] = 1.0
    assert [limiter.admit(b"", amount) for amount in (11, 10)] == [False, True]


@given(st.floats(0.5, 50), st.lists(st.floats(0, 0.3), max_size=200))
def test_no_window_exceeds_the_rate(rate: float, gaps: list[float]) -> None:
    now = [0.0]
    limiter, admitted = RateLimiter(rate, lambda: now[0]), []
    for gap in gaps:
        now[0] += gap
        if limiter.admit(b"a"):
            admitted.append(now[0])
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= max(1.0, rate) + rate * (admitted[last] - admitted[first]) + 1e-6


def test_concurrency_limiter_learns_the_cost_of_a_request() -> None:
    now = [0.0]
    limiter = ConcurrencyLimiter(max_in_flight=1000, max_expected_ms=100, clock=lambda: now[0])
    # Ten in flight take 50 ms.
    # The first of ten pays for all and the last for a tenth, so that about 7 ms are learned.
    for _ in range(300):
        with ExitStack() as in_flight:
            for _ in range(10):
                in_flight.enter_context(limiter.request())
            now[0] += 0.05
    admitted = 0
    with ExitStack() as in_flight:
        while limiter.has_capacity():
            in_flight.enter_context(limiter.request())
            admitted += 1
    assert MIN_CONCURRENCY < admitted < 20
