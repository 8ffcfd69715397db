"""Times as milliseconds since the epoch: their range, and hour and weekday in UTC."""

from typing import Any, Protocol, TypeVar

FIRST_TIMESTAMP_MS, LAST_TIMESTAMP_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999, in files and requests alike: beyond, a number has another unit than was said."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
HOURS_PER_DAY, DAYS_PER_WEEK = 24, 7
_EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday."""


class _Integers(Protocol):
    def __floordiv__(self, other: int, /) -> Any: ...


T = TypeVar("T", bound=_Integers)
"""An int, an array or a tensor of int64: all have the operators that are used here, and
ONNX exports those of tensors.
"""


def hour_of_day(timestamp_ms: T) -> T:
    """Returns the hour, 0 to 23."""
    hour: T = timestamp_ms // HOUR_MS % HOURS_PER_DAY
    return hour


def weekday(timestamp_ms: T) -> T:
    """Returns the weekday, 0 (Monday) to 6."""
    day: T = (timestamp_ms // DAY_MS + _EPOCH_WEEKDAY) % DAYS_PER_WEEK
    return day
