"""Padding against a slow one.

Shape legend: B sequences, B1 = B + 1, L length, T tokens.
"""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.encoders import (
    padded,
    random_items,
)
from training.data.padding import pad_right_aligned


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_pad_right_aligned_matches_slow_padding(lengths: list[int]) -> None:
    items = random_items(lengths)
    offsets_B1 = torch.tensor(np.cumsum([0, *lengths]))
    items_BL, row_T, column_T = pad_right_aligned(torch.cat(items), offsets_B1)
    assert torch.equal(items_BL, padded(items))
    assert torch.equal(items_BL[row_T, column_T], torch.cat(items))
