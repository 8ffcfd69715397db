"""The encoder against a slow one without batches and padding, and the effects of padding and masks.

Shape legend: B sequences, L length, P requested columns, D width, M requested cells.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW, MASK_ROW, PADDING_ROW
from tests.support.datasets import small_recipe
from tests.support.encoders import (
    NUM_ROWS,
    VARIANTS,
    SlowTimes,
    event_types_of,
    padded,
    padded_times,
    random_items,
    random_model,
    random_times,
)
from tests.support.slow_encoder import slow_bucket, slow_encoder
from training.data.padding import columns_of_rows
from training.model.dropout import Dropout
from training.model.encoder import Times
from training.model.layers import time_buckets
from training.model.sequence_model import SequenceModel

variants = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())


@torch.no_grad()
@variants
def test_encoder_matches_slow_encoder(overrides: tuple[str, ...]) -> None:
    model = random_model(*overrides)
    items = random_items([1, 3, 9, 7])
    masked = [[0], [1], [2, 3, 8], []]
    for items_L, positions in zip(items, masked, strict=True):
        items_L[positions] = MASK_ROW
    keys, queries = random_times(items), random_times(items, seed=1)
    items_BL = padded(items)
    encoded_BLD = model.encode(
        items_BL, Times(padded_times(queries), padded_times(keys)), event_types_BL=event_types_of(items_BL)
    )
    for row, items_L in enumerate(items):
        vectors, types = list(model.items.ids.weight[items_L]), event_types_of(items_L).tolist()
        slow_LD = slow_encoder(model.encoder, vectors, SlowTimes(queries[row], keys[row]), masked[row], types)
        torch.testing.assert_close(encoded_BLD[row, -len(items_L) :], slow_LD, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@variants
def test_requested_columns_equal_full_encoding(overrides: tuple[str, ...]) -> None:
    """Requested columns get the same dropout noise."""
    model = random_model(*overrides)
    items = random_items([9, 5, 1])
    items_BL, times_BL = padded(items), padded_times(random_times(items))
    wanted_BL = (torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.4) & (
        items_BL != PADDING_ROW
    )
    wanted_BL[2, 8] = True
    row_M, column_M = wanted_BL.nonzero(as_tuple=True)
    columns_BP, slot_M = columns_of_rows(row_M, column_M, 3)
    assert columns_BP.shape[1] < 9 and torch.equal(columns_BP[row_M, slot_M], column_M)
    all_BLD, some_BPD = (
        model.encode(
            items_BL,
            Times(times_BL, times_BL),
            Dropout(0.3, 7, torch.arange(27).view(3, 9)),
            columns,
            None,
            items_BL % 3,
        )
        for columns in (None, columns_BP)
    )
    torch.testing.assert_close(some_BPD[row_M, slot_M], all_BLD[row_M, column_M], atol=2e-6, rtol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_causal_positions_ignore_newer_items(positions: str) -> None:
    """Without positions from the end, newer items do not change the numbers of older ones either."""
    model = random_model(
        "objective.kind=causal", f"model.positions={positions}", "model.time_bias=true", "model.time_gap=true"
    )
    items_BL = random_items([9])[0][None]
    times_BL = padded_times(random_times(list(items_BL)))
    changed_BL = items_BL.clone()
    changed_BL[0, 5:] = FIRST_ITEM_ROW
    before_BLD, after_BLD = (
        model.encode(rows_BL, Times(times_BL, times_BL)) for rows_BL in (items_BL, changed_BL)
    )
    torch.testing.assert_close(before_BLD[0, :5], after_BLD[0, :5])
    assert not torch.allclose(before_BLD[0, 5:], after_BLD[0, 5:], atol=1e-2)
    shorter_BLD = model.encode(items_BL[:, :6], Times(times_BL[:, :6], times_BL[:, :6]))
    torch.testing.assert_close(shorter_BLD, before_BLD[:, :6], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_masked_items_are_not_attended_to() -> None:
    """Positions attend to items and never to masks, in training as in serving."""
    model = random_model()
    items_L = random_items([9])[0]
    items_L[[2, 5, 6]] = MASK_ROW
    before_BLD = model.encode(items_L[None])
    model.items.ids.weight[MASK_ROW] *= -1
    after_BLD = model.encode(items_L[None])
    shown_L = items_L != MASK_ROW
    assert torch.equal(before_BLD[0, shown_L], after_BLD[0, shown_L])
    assert not torch.allclose(before_BLD[0, ~shown_L], after_BLD[0, ~shown_L], atol=1e-2)


@torch.no_grad()
def test_head_directions_limit_attention() -> None:
    """Two blocks of one direction leave a position without information from the other side."""
    items_BL = random_items([9])[0][None]
    changed_BL = items_BL.clone()
    changed_BL[0, 4] = FIRST_ITEM_ROW + (items_BL[0, 4] - FIRST_ITEM_ROW + 1) % (NUM_ROWS - FIRST_ITEM_ROW)
    for direction, blind in (("past", slice(0, 4)), ("future", slice(5, 9))):
        model = random_model(f"model.head_directions=['{direction}','{direction}']")
        moved_L = (model.encode(items_BL) - model.encode(changed_BL)).abs().amax(-1)[0]
        assert not moved_L[blind].any() and moved_L.count_nonzero() == 5


@given(
    elapsed_ms=st.integers(-(10**12), 10**12) | st.integers(0, 40).map(lambda power: 1000 * (2**power - 1))
)
def test_time_buckets_match_slow_buckets(elapsed_ms: int) -> None:
    assert int(time_buckets(torch.tensor(elapsed_ms))) == slow_bucket(elapsed_ms)


@torch.no_grad()
@pytest.mark.parametrize("extra_columns", [1, 3, 8])
def test_left_padding_changes_nothing(extra_columns: int) -> None:
    model = random_model()
    items = random_items([2, 1, 2])
    plain_BLD, wide_BLD = model.encode(padded(items)), model.encode(padded(items, extra_columns))
    for position, items_L in enumerate(items):
        torch.testing.assert_close(
            plain_BLD[position, -len(items_L) :], wide_BLD[position, -len(items_L) :], atol=1e-6, rtol=1e-6
        )


def test_gradients_are_finite_with_an_empty_row() -> None:
    model = random_model()
    items_BL = torch.cat([padded(random_items([5])), torch.zeros(1, 5, dtype=torch.int64)])
    model.encode(items_BL).sum().backward()
    assert all(
        torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None
    )


def test_initial_weights_depend_on_seed_alone() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        model = SequenceModel(
            small_recipe(f"training.seed={seed}"), torch.zeros(NUM_ROWS, dtype=torch.float64), total_steps=1
        )
        return dict(model.state_dict())

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    again, other = weights(3), weights(4)
    # A linear layer's own initialisation draws from the global generator, and must have no effect.
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["items.ids.weight"], other["items.ids.weight"])
