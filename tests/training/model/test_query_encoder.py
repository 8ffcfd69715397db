"""Queries of the model and of the exported network against a slow encoder.

Shape legend: B sequences, L length, D width, R item rows.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from passerelle.ids import FIRST_ITEM_ROW, MASK_ROW, PADDING_ROW
from tests.support.encoders import (
    NUM_ROWS,
    VARIANTS,
    SlowTimes,
    event_types_of,
    histories_of,
    inputs_of,
    padded,
    random_items,
    random_model,
)
from tests.support.histories import untimed
from tests.support.slow_encoder import slow_encoder, slow_query
from training.export.onnx_files import query_arguments

variants = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())


@torch.no_grad()
@variants
def test_query_matches_slow_encoder(overrides: tuple[str, ...]) -> None:
    """Causal encoders predict at the newest item, others at a mask after it, for the request's time."""
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
def test_exported_query_encoder_equals_model(overrides: tuple[str, ...]) -> None:
    """The exported network takes vectors of items, zeros in the padding."""
    model = random_model(*overrides)
    network = model.query_encoder()
    for lengths in ([1], [9, 2, 1], [5, 5]):
        histories, _ = histories_of(random_items(lengths))
        query_BD = network(*query_arguments(inputs_of(model, histories)))
        torch.testing.assert_close(query_BD, model.encode_histories(histories), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_request_time_affects_only_models_with_times() -> None:
    histories, _ = histories_of(random_items([5, 9]))
    later = replace(histories, request_timestamp_ms_B1=histories.request_timestamp_ms_B1 + 10**10)
    for kind, option in itertools.product(("masked", "causal"), ("time_bias", "time_gap")):
        plain, aware = (
            random_model(f"objective.kind={kind}", f"model.{option}={aware}") for aware in ("false", "true")
        )
        assert torch.equal(plain.encode_histories(histories), plain.encode_histories(later))
        assert not torch.allclose(aware.encode_histories(histories), aware.encode_histories(later), atol=1e-2)


@torch.no_grad()
def test_query_encoder_shares_no_memory_with_the_table() -> None:
    model = random_model()
    network, inputs = model.query_encoder(), inputs_of(model, untimed(padded(random_items([4]))))
    before_BD = network(*query_arguments(inputs))
    model.items.ids.weight.zero_()
    assert torch.equal(network(*query_arguments(inputs)), before_BD)


@torch.no_grad()
def test_vectors_in_padding_have_no_effect() -> None:
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
def test_query_depends_on_order_and_every_item() -> None:
    model = random_model()
    items_L = random_items([9])[0]
    query_D = model.encode_histories(untimed(items_L[None]))[0]
    assert not torch.allclose(model.encode_histories(untimed(items_L.flip(0)[None]))[0], query_D, atol=1e-3)
    for position in range(len(items_L)):
        changed_L = items_L.clone()
        changed_L[position] = FIRST_ITEM_ROW + (items_L[position] - FIRST_ITEM_ROW + 1) % (
            NUM_ROWS - FIRST_ITEM_ROW
        )
        assert not torch.allclose(model.encode_histories(untimed(changed_L[None]))[0], query_D, atol=1e-4), (
            f"position {position} is not read"
        )


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5])
def test_empty_history_gives_finite_queries(length: int) -> None:
    model = random_model()
    empty_BL = torch.full((2, length), PADDING_ROW)
    query_BD = model.encode_histories(untimed(empty_BL))
    assert torch.isfinite(query_BD).all()
    torch.testing.assert_close(
        query_BD[0], slow_encoder(model.encoder, [model.items.ids.weight[MASK_ROW]])[-1], atol=1e-5, rtol=1e-5
    )
    assert torch.isfinite(model.encode(empty_BL)).all()


def test_item_vectors_of_special_rows_are_zero() -> None:
    model = random_model()
    vectors_RD = model.item_vectors()
    assert not vectors_RD[:FIRST_ITEM_ROW].any()
    assert torch.equal(vectors_RD[FIRST_ITEM_ROW:], model.items.ids.weight.detach()[FIRST_ITEM_ROW:])
    assert model.items.ids.weight[1].any(), "the copy was zeroed, not the table"
    assert model.history_vectors() is None


@torch.no_grad()
def test_separate_table_holds_candidate_vectors() -> None:
    model = random_model("model.output_table=separate")
    histories, _ = histories_of(random_items([5, 9]))
    before_BD, candidates_RD = model.encode_histories(histories), model.item_vectors()
    assert model.items.answers is not None and torch.equal(candidates_RD[2:], model.items.answers.weight[2:])
    model.items.answers.weight.zero_()
    assert torch.equal(model.encode_histories(histories), before_BD), (
        "histories are read from the other table"
    )
    assert not model.item_vectors().any() and model.history_vectors() is not None
