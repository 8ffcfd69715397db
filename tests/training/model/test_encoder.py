"""The encoder against a slow one that knows no batches and no padding, and what padding must never do.

Shape legend: B sequences, B1 = B + 1, L length, D width, H heads, T tokens.
"""

import itertools
from dataclasses import replace

import numpy as np
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
    histories_of,
    inputs_of,
    padded,
    padded_times,
    random_items,
    random_model,
    random_times,
)
from tests.support.histories import untimed
from tests.support.slow_encoder import slow_bucket, slow_encoder, slow_query
from training.data.padding import columns_of_rows, pad_right_aligned
from training.export.onnx_files import query_arguments
from training.model.dropout import Dropout
from training.model.encoder import Times
from training.model.layers import time_buckets
from training.model.sequence_model import SequenceModel

variants = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())


@torch.no_grad()
@variants
def test_encoder_equals_the_slow_one(overrides: tuple[str, ...]) -> None:
    model = random_model(*overrides)
    items = random_items([1, 3, 9, 7])
    hidden = [[0], [1], [2, 3, 8], []]
    for items_L, places in zip(items, hidden, strict=True):
        items_L[places] = MASK_ROW
    keys, queries = random_times(items), random_times(items, seed=1)
    items_BL = padded(items)
    encoded_BLD = model.encode(
        items_BL, Times(padded_times(queries), padded_times(keys)), event_types_BL=event_types_of(items_BL)
    )
    for row, items_L in enumerate(items):
        vectors, types = list(model.items.ids.weight[items_L]), event_types_of(items_L).tolist()
        slow_LD = slow_encoder(model.encoder, vectors, SlowTimes(queries[row], keys[row]), hidden[row], types)
        torch.testing.assert_close(encoded_BLD[row, -len(items_L) :], slow_LD, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@variants
def test_query_is_what_the_slow_encoder_says_of_the_next_item(overrides: tuple[str, ...]) -> None:
    """At the newest item when causal, else at a mask after it; and for the time of the request."""
    model = random_model(*overrides)
    items = random_items([1, 9, 4])
    histories, times = histories_of(items)
    for row, (query_D, items_L, (with_request, _)) in enumerate(
        zip(model.encode_histories(histories), items, times, strict=True)
    ):
        vectors, types = list(model.items.ids.weight[items_L]), event_types_of(items_L).tolist()
        if model.encoder.causal:
            slow_LD = slow_encoder(
                model.encoder, vectors, SlowTimes(with_request[1:], with_request[:-1]), types=types
            )
        else:
            vectors.append(model.items.ids.weight[MASK_ROW])
            slow_LD = slow_encoder(
                model.encoder, vectors, SlowTimes(with_request, with_request), [len(items_L)], [*types, 0]
            )
        user, event = int(histories.user_rows_B[row]), int(histories.request_events_B[row])
        torch.testing.assert_close(
            query_D, slow_query(model, slow_LD[-1], user, event, with_request[-1]), atol=2e-5, rtol=2e-5
        )


@torch.no_grad()
@variants
def test_some_positions_get_what_all_would(overrides: tuple[str, ...]) -> None:
    """With the same noise of dropout."""
    model = random_model(*overrides)
    items = random_items([9, 5, 1])
    items_BL, times_BL = padded(items), padded_times(random_times(items))
    wanted_BL = (torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.4) & (
        items_BL != PADDING_ROW
    )
    wanted_BL[2, 8] = True
    row_M, column_M = wanted_BL.nonzero(as_tuple=True)
    columns_BP, place_M = columns_of_rows(row_M, column_M, 3)
    assert columns_BP.shape[1] < 9 and torch.equal(columns_BP[row_M, place_M], column_M)
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
    torch.testing.assert_close(some_BPD[row_M, place_M], all_BLD[row_M, column_M], atol=2e-6, rtol=2e-6)


@torch.no_grad()
@variants
def test_query_encoder_equals_the_model(overrides: tuple[str, ...]) -> None:
    """What is exported gathers nothing: it is given the vectors of the items, zeros in the padding."""
    model = random_model(*overrides)
    network = model.query_encoder()
    for lengths in ([1], [9, 2, 1], [5, 5]):
        histories, _ = histories_of(random_items(lengths))
        query_BD = network(*query_arguments(inputs_of(model, histories)))
        torch.testing.assert_close(query_BD, model.encode_histories(histories), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_a_causal_position_sees_nothing_newer(positions: str) -> None:
    """And without positions from the end, what comes later does not even move it."""
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
def test_an_item_among_hidden_ones_is_as_if_they_were_not_there() -> None:
    """Training and serving show a position the same thing: items, and never a mask."""
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
def test_heads_look_where_they_are_told_to() -> None:
    """Two blocks that see the future alone tell a position nothing of what came before it, and the other way round."""
    items_BL = random_items([9])[0][None]
    changed_BL = items_BL.clone()
    changed_BL[0, 4] = FIRST_ITEM_ROW + (items_BL[0, 4] - FIRST_ITEM_ROW + 1) % (NUM_ROWS - FIRST_ITEM_ROW)
    for direction, blind in (("past", slice(0, 4)), ("future", slice(5, 9))):
        model = random_model(f"model.head_directions=['{direction}','{direction}']")
        moved_L = (model.encode(items_BL) - model.encode(changed_BL)).abs().amax(-1)[0]
        assert not moved_L[blind].any() and moved_L.count_nonzero() == 5


@torch.no_grad()
def test_the_time_of_the_request_matters_only_to_a_model_with_time() -> None:
    histories, _ = histories_of(random_items([5, 9]))
    later = replace(histories, request_timestamp_ms_B1=histories.request_timestamp_ms_B1 + 10**10)
    for kind, option in itertools.product(("masked", "causal"), ("time_bias", "time_gap")):
        plain, aware = (
            random_model(f"objective.kind={kind}", f"model.{option}={aware}") for aware in ("false", "true")
        )
        assert torch.equal(plain.encode_histories(histories), plain.encode_histories(later))
        assert not torch.allclose(aware.encode_histories(histories), aware.encode_histories(later), atol=1e-2)


@given(
    elapsed_ms=st.integers(-(10**12), 10**12) | st.integers(0, 40).map(lambda power: 1000 * (2**power - 1))
)
def test_time_buckets_equal_the_slow_ones(elapsed_ms: int) -> None:
    assert int(time_buckets(torch.tensor(elapsed_ms))) == slow_bucket(elapsed_ms)


@torch.no_grad()
def test_query_encoder_shares_no_memory_with_the_table() -> None:
    model = random_model()
    network, inputs = model.query_encoder(), inputs_of(model, untimed(padded(random_items([4]))))
    before_BD = network(*query_arguments(inputs))
    model.items.ids.weight.zero_()
    assert torch.equal(network(*query_arguments(inputs)), before_BD)


@torch.no_grad()
@pytest.mark.parametrize("extra_columns", [1, 3, 8])
def test_padding_on_the_left_changes_nothing(extra_columns: int) -> None:
    model = random_model()
    items = random_items([2, 1, 2])
    plain_BLD, wide_BLD = model.encode(padded(items)), model.encode(padded(items, extra_columns))
    for place, items_L in enumerate(items):
        torch.testing.assert_close(
            plain_BLD[place, -len(items_L) :], wide_BLD[place, -len(items_L) :], atol=1e-6, rtol=1e-6
        )


@torch.no_grad()
def test_vectors_in_the_padding_do_not_matter() -> None:
    model = random_model()
    network, items_BL = model.query_encoder(), padded(random_items([3, 6]))
    inputs = inputs_of(model, untimed(items_BL))
    spoilt_BLD = torch.where(inputs["mask"][..., None], inputs["item_vectors"], 1e4)
    spoilt = inputs | {
        "item_vectors": spoilt_BLD,
        "event_types": torch.where(inputs["mask"], inputs["event_types"], 2),
    }
    torch.testing.assert_close(
        network(*query_arguments(spoilt)), network(*query_arguments(inputs)), atol=1e-6, rtol=1e-6
    )


@torch.no_grad()
def test_order_and_every_item_matter() -> None:
    model = random_model()
    items_L = random_items([9])[0]
    query_D = model.encode_histories(untimed(items_L[None]))[0]
    assert not torch.allclose(model.encode_histories(untimed(items_L.flip(0)[None]))[0], query_D, atol=1e-3)
    for place in range(len(items_L)):
        changed_L = items_L.clone()
        changed_L[place] = FIRST_ITEM_ROW + (items_L[place] - FIRST_ITEM_ROW + 1) % (
            NUM_ROWS - FIRST_ITEM_ROW
        )
        assert not torch.allclose(model.encode_histories(untimed(changed_L[None]))[0], query_D, atol=1e-4), (
            f"place {place} is not read"
        )


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5])
def test_an_empty_history_gives_finite_numbers(length: int) -> None:
    model = random_model()
    empty_BL = torch.full((2, length), PADDING_ROW)
    query_BD = model.encode_histories(untimed(empty_BL))
    assert torch.isfinite(query_BD).all()
    torch.testing.assert_close(
        query_BD[0], slow_encoder(model.encoder, [model.items.ids.weight[MASK_ROW]])[-1], atol=1e-5, rtol=1e-5
    )
    assert torch.isfinite(model.encode(empty_BL)).all()


def test_gradients_are_finite_beside_an_empty_row() -> None:
    model = random_model()
    items_BL = torch.cat([padded(random_items([5])), torch.zeros(1, 5, dtype=torch.int64)])
    model.encode(items_BL).sum().backward()
    assert all(
        torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None
    )


def test_items_of_a_model_without_special_rows() -> None:
    model = random_model()
    vectors_RD = model.item_vectors()
    assert not vectors_RD[:FIRST_ITEM_ROW].any()
    assert torch.equal(vectors_RD[FIRST_ITEM_ROW:], model.items.ids.weight.detach()[FIRST_ITEM_ROW:])
    assert model.items.ids.weight[1].any(), "the copy was zeroed, not the table"
    assert model.history_vectors() is None


@torch.no_grad()
def test_a_separate_table_gives_the_answers() -> None:
    model = random_model("model.output_table=separate")
    histories, _ = histories_of(random_items([5, 9]))
    before_BD, candidates_RD = model.encode_histories(histories), model.item_vectors()
    assert model.items.answers is not None and torch.equal(candidates_RD[2:], model.items.answers.weight[2:])
    model.items.answers.weight.zero_()
    assert torch.equal(model.encode_histories(histories), before_BD), (
        "histories are read from the other table"
    )
    assert not model.item_vectors().any() and model.history_vectors() is not None


def test_the_same_seed_makes_the_same_weights() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        model = SequenceModel(
            small_recipe(f"training.seed={seed}"), torch.zeros(NUM_ROWS, dtype=torch.float64), total_steps=1
        )
        return dict(model.state_dict())

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    again, other = weights(3), weights(4)
    # a linear layer's own initialisation draws from the global generator, and must not show through
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["items.ids.weight"], other["items.ids.weight"])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_padding_equals_the_slow_one(lengths: list[int]) -> None:
    items = random_items(lengths)
    offsets_B1 = torch.tensor(np.cumsum([0, *lengths]))
    items_BL, row_T, column_T = pad_right_aligned(torch.cat(items), offsets_B1)
    assert torch.equal(items_BL, padded(items))
    assert torch.equal(items_BL[row_T, column_T], torch.cat(items))
