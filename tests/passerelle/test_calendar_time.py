"""Hour and weekday agree with the standard library, for integers, arrays and tensors alike."""

from datetime import UTC, datetime, timedelta

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from passerelle.calendar_time import hour_of_day, weekday

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.integers(-(10**13), 10**13))
def test_hour_and_weekday_agree_with_the_standard_library(timestamp_ms: int) -> None:
    """Before 1970, too."""
    then = EPOCH + timedelta(milliseconds=timestamp_ms)
    assert (hour_of_day(timestamp_ms), weekday(timestamp_ms)) == (then.hour, then.weekday())


@given(st.lists(st.integers(-(10**13), 10**13), min_size=1, max_size=20))
def test_arrays_and_tensors_give_what_integers_give(timestamps_ms: list[int]) -> None:
    times_N = np.array(timestamps_ms, dtype=np.int64)
    for function in (hour_of_day, weekday):
        expected = [function(timestamp_ms) for timestamp_ms in timestamps_ms]
        assert function(times_N).tolist() == expected
        assert function(torch.from_numpy(times_N)).tolist() == expected
