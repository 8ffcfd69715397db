"""The encoder against a slow one that knows no batches and no padding, and what padding must never do.

Shape legend: B sequences, B1 = B + 1, L length, D width, H heads, K = D / H, T tokens.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from tests.datasets import small_recipe
from training.bert4rec import Bert4Rec
from training.encoder import Block, SequenceEncoder, pad_right_aligned

NUM_ROWS = 50
MODEL = ("model.dim=8", "model.num_blocks=3", "model.max_history=9", "model.distance_slopes=[0.5, 0.03]")


def random_model(*overrides: str, seed: int = 0) -> Bert4Rec:
    """A model whose every parameter is random and large: zeros and ones would hide a bias or a norm that is not applied."""
    model = Bert4Rec(small_recipe(*MODEL, *overrides), torch.zeros(NUM_ROWS, dtype=torch.float64), total_steps=1).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model


def slow_norm(vector_D: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred_D = vector_D - vector_D.mean()
    return centred_D / math.sqrt(float((centred_D**2).mean()) + norm.eps) * norm.weight + norm.bias


def slow_block(block: Block, hidden: list[Tensor], slopes: list[float]) -> list[Tensor]:
    length, width = len(hidden), len(hidden[0])
    size = width // len(slopes)
    projected = [
        block.query_key_value.weight @ slow_norm(vector_D, block.attention_norm) + block.query_key_value.bias for vector_D in hidden
    ]
    output = []
    for place in range(length):
        attended = []
        for head, slope in enumerate(slopes):
            query_K = projected[place][head * size :][:size]
            logits = []
            for other in range(length):
                key_K = projected[other][width + head * size :][:size]
                logits.append(float(query_K @ key_K) / math.sqrt(size) - slope * abs(place - other))
            shares = [math.exp(logit - max(logits)) for logit in logits]
            values = [projected[other][2 * width + head * size :][:size] for other in range(length)]
            attended.append(sum((share / sum(shares) * value_K for share, value_K in zip(shares, values, strict=True)), torch.zeros(size)))
        vector_D = hidden[place] + block.attention_out.weight @ torch.cat(attended) + block.attention_out.bias
        wide_F = block.feedforward_in.weight @ slow_norm(vector_D, block.feedforward_norm) + block.feedforward_in.bias
        wide_F = wide_F * 0.5 * (1 + torch.erf(wide_F / math.sqrt(2)))
        output.append(vector_D + block.feedforward_out.weight @ wide_F + block.feedforward_out.bias)
    return output


def slow_encoder(encoder: SequenceEncoder, vectors: list[Tensor]) -> Tensor:
    """[L, D] of one sequence without padding; position 0 from the end is the last row of the position table."""
    length = len(vectors)
    hidden = [
        slow_norm(vector_D + encoder.position[encoder.max_length - length + place], encoder.input_norm)
        for place, vector_D in enumerate(vectors)
    ]
    for block in encoder.blocks:
        assert isinstance(block, Block)
        hidden = slow_block(block, hidden, encoder.slopes_H.tolist())
    return torch.stack([encoder.head.weight @ slow_norm(vector_D, encoder.output_norm) + encoder.head.bias for vector_D in hidden])


def random_items(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_ITEM_ROW, NUM_ROWS, (length,), generator=generator) for length in lengths]


def padded(items: list[Tensor], extra_columns: int = 0) -> Tensor:
    longest = max(len(items_L) for items_L in items) + extra_columns
    return torch.stack([torch.cat([torch.full((longest - len(items_L),), PADDING_ROW), items_L]) for items_L in items])


@torch.no_grad()
@pytest.mark.parametrize("overrides", [(), ("model.num_heads=4", "model.distance_slopes=[1.0, 0.3, 0.1, 0.0]"), ("model.num_blocks=1",)])
def test_encoder_equals_the_slow_one(overrides: tuple[str, ...]) -> None:
    model = random_model(*overrides)
    items = random_items([1, 3, 10, 7])
    encoded_BLD = model.encode(padded(items))
    for encoded_LD, items_L in zip(encoded_BLD, items, strict=True):
        slow_LD = slow_encoder(model.encoder, list(model.table_RD[items_L]))
        torch.testing.assert_close(encoded_LD[len(encoded_LD) - len(items_L) :], slow_LD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_query_is_what_the_slow_encoder_puts_in_place_of_a_mask() -> None:
    model = random_model()
    items = random_items([1, 9, 4])
    query_BD = model.encode_histories(padded(items))
    for query_D, items_L in zip(query_BD, items, strict=True):
        slow_LD = slow_encoder(model.encoder, [*model.table_RD[items_L], model.table_RD[1]])
        torch.testing.assert_close(query_D, slow_LD[-1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_query_encoder_equals_the_model() -> None:
    """What is exported gathers nothing: it is given the vectors of the items, zeros in the padding."""
    model = random_model()
    network = model.query_encoder()
    for lengths in ([1], [9, 2, 1], [5, 5]):
        items_BL = padded(random_items(lengths))
        query_BD = network(model.item_vectors()[items_BL], items_BL != PADDING_ROW)
        torch.testing.assert_close(query_BD, model.encode_histories(items_BL), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_query_encoder_shares_no_memory_with_the_table() -> None:
    model = random_model()
    network, items_BL = model.query_encoder(), padded(random_items([4]))
    vectors_BLD, mask_BL = model.item_vectors()[items_BL], items_BL != PADDING_ROW
    before_BD = network(vectors_BLD, mask_BL)
    model.table_RD.zero_()
    assert torch.equal(network(vectors_BLD, mask_BL), before_BD)


@torch.no_grad()
@pytest.mark.parametrize("extra_columns", [1, 3, 8])
def test_padding_on_the_left_changes_nothing(extra_columns: int) -> None:
    model = random_model()
    items = random_items([2, 1, 2])
    plain_BLD, wide_BLD = model.encode(padded(items)), model.encode(padded(items, extra_columns))
    for place, items_L in enumerate(items):
        torch.testing.assert_close(plain_BLD[place, -len(items_L) :], wide_BLD[place, -len(items_L) :], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_vectors_in_the_padding_do_not_matter() -> None:
    model = random_model()
    network, items_BL = model.query_encoder(), padded(random_items([3, 6]))
    vectors_BLD, mask_BL = model.item_vectors()[items_BL], items_BL != PADDING_ROW
    spoilt_BLD = torch.where(mask_BL[..., None], vectors_BLD, 1e4)
    torch.testing.assert_close(network(spoilt_BLD, mask_BL), network(vectors_BLD, mask_BL), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_order_and_every_item_matter() -> None:
    model = random_model()
    items_L = random_items([9])[0]
    query_D = model.encode_histories(items_L[None])[0]
    assert not torch.allclose(model.encode_histories(items_L.flip(0)[None])[0], query_D, atol=1e-3)
    for place in range(len(items_L)):
        changed_L = items_L.clone()
        changed_L[place] = FIRST_ITEM_ROW + (items_L[place] - FIRST_ITEM_ROW + 1) % (NUM_ROWS - FIRST_ITEM_ROW)
        assert not torch.allclose(model.encode_histories(changed_L[None])[0], query_D, atol=1e-4), f"place {place} is not read"


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5])
def test_an_empty_history_gives_finite_numbers(length: int) -> None:
    model = random_model()
    empty_BL = torch.full((2, length), PADDING_ROW)
    query_BD = model.encode_histories(empty_BL)
    assert torch.isfinite(query_BD).all()
    torch.testing.assert_close(query_BD[0], slow_encoder(model.encoder, [model.table_RD[1]])[-1], atol=1e-5, rtol=1e-5)
    assert torch.isfinite(model.encode(empty_BL)).all()


def test_gradients_are_finite_beside_an_empty_row() -> None:
    model = random_model()
    items_BL = torch.cat([padded(random_items([5])), torch.zeros(1, 5, dtype=torch.int64)])
    model.encode(items_BL).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_items_of_a_model_without_special_rows() -> None:
    model = random_model()
    vectors_RD = model.item_vectors()
    assert not vectors_RD[:FIRST_ITEM_ROW].any()
    assert torch.equal(vectors_RD[FIRST_ITEM_ROW:], model.table_RD.detach()[FIRST_ITEM_ROW:])
    assert model.table_RD[1].any(), "the copy was zeroed, not the table"


def test_the_same_seed_makes_the_same_weights() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        model = Bert4Rec(small_recipe(f"training.seed={seed}"), torch.zeros(NUM_ROWS, dtype=torch.float64), total_steps=1)
        return dict(model.state_dict())

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    again, other = weights(3), weights(4)
    # a linear layer's own initialisation draws from the global generator, and must not show through
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["table_RD"], other["table_RD"])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_padding_equals_the_slow_one(lengths: list[int]) -> None:
    items = random_items(lengths)
    offsets_B1 = torch.tensor(np.cumsum([0, *lengths]))
    items_BL, row_T, column_T = pad_right_aligned(torch.cat(items), offsets_B1)
    assert torch.equal(items_BL, padded(items))
    assert torch.equal(items_BL[row_T, column_T], torch.cat(items))
