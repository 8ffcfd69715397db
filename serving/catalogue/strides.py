"""Slices of growing length, for searches that stop as soon as they have found enough."""

from collections.abc import Iterator

_FIRST_STRIDE = 4096


def growing_slices(start: int, stop: int, k: int) -> Iterator[slice]:
    """Yields consecutive slices of `start:stop`, each twice as long as the one before.

    Args:
        k: number of results that are wanted; the first slice has at least twice as many elements.
    """
    stride = max(_FIRST_STRIDE, 2 * k)
    while start < stop:
        yield slice(start, min(start + stride, stop))
        start, stride = start + stride, 2 * stride
