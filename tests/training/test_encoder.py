"""The encoder against a slow one that knows no batches and no padding, and what padding must never do.

Shape legend: B sequences, B1 = B + 1, L length, D width, H heads, K = D / H, T tokens.
"""

import cmath
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from tests.datasets import small_recipe
from tests.histories import untimed
from training.encoder import SequenceEncoder, Times, pad_right_aligned
from training.evaluation_batches import Histories
from training.layers import Attention, Block, FeedForward, Residual, time_buckets
from training.sequence_model import SequenceModel

NUM_ROWS = 50
MODEL = ("model.dim=16", "model.num_blocks=3", "model.max_history=9", "model.distance_slopes=[0.5, 0.03]")


def random_model(*overrides: str, seed: int = 0) -> SequenceModel:
    """A model whose every parameter is random and large: zeros and ones would hide a bias or a norm that is not applied."""
    model = SequenceModel(small_recipe(*MODEL, *overrides), torch.zeros(NUM_ROWS, dtype=torch.float64), total_steps=1).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model


class SlowTimes(NamedTuple):
    """Milliseconds, of one sequence."""

    query: list[int]
    key: list[int]


def slow_norm(vector_D: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    if isinstance(norm, nn.RMSNorm):
        assert norm.eps is not None
        return vector_D / math.sqrt(float((vector_D**2).mean()) + norm.eps) * norm.weight
    centred_D = vector_D - vector_D.mean()
    return centred_D / math.sqrt(float((centred_D**2).mean()) + norm.eps) * norm.weight + norm.bias


def slow_linear(layer: nn.Linear, vector_D: Tensor) -> Tensor:
    return layer.weight @ vector_D + layer.bias


def slow_bucket(elapsed_ms: int) -> int:
    """Two buckets an octave of whole seconds; the second half of the table is for the future."""
    seconds = abs(elapsed_ms) // 1000
    bucket = min(math.floor(2 * math.log2(seconds + 1) + 1e-9), 63)
    return bucket + 64 if elapsed_ms < 0 and seconds else bucket


def slow_rotated(vector_K: Tensor, place: int) -> Tensor:
    """Pairs (k, k + K / 2) as complex numbers, turned."""
    half = len(vector_K) // 2
    turned = [complex(vector_K[k], vector_K[k + half]) * cmath.exp(1j * place * 10_000 ** (-k / half)) for k in range(half)]
    return torch.tensor([number.real for number in turned] + [number.imag for number in turned])


def slow_attention(block: Block, encoder: SequenceEncoder, inputs: list[Tensor], times: SlowTimes | None) -> list[Tensor]:
    """Every head of every position by itself."""
    attention, length, width = block.attention.layer, len(inputs), len(inputs[0])
    assert isinstance(attention, Attention)
    slopes = encoder.slopes_H.tolist()
    size = width // len(slopes)
    projected = [slow_linear(attention.query_key_value, vector_D) for vector_D in inputs]
    offset = encoder.max_length - length
    output = []
    for place in range(length):
        heads = []
        for head, slope in enumerate(slopes):
            start = head * size
            query_K = projected[place][start : start + size]
            seen = range(place + 1) if encoder.causal else range(length)
            logits = []
            for other in seen:
                key_K = projected[other][width + start : width + start + size]
                turned = (query_K, key_K)
                if encoder.angles_LK is not None:
                    turned = (slow_rotated(query_K, offset + place), slow_rotated(key_K, offset + other))
                logit = float(turned[0] @ turned[1]) / math.sqrt(size) - slope * abs(place - other)
                if block.time_bias is not None:
                    assert times is not None
                    logit += float(block.time_bias.table_NH[slow_bucket(times.query[place] - times.key[other]), head])
                logits.append(logit)
            shares = [math.exp(logit - max(logits)) for logit in logits]
            values = [projected[other][2 * width + start : 2 * width + start + size] for other in seen]
            heads.append(sum((share / sum(shares) * value_K for share, value_K in zip(shares, values, strict=True)), torch.zeros(size)))
        output.append(slow_linear(attention.out, torch.cat(heads)))
    return output


def slow_feedforward(layer: FeedForward, vector_D: Tensor) -> Tensor:
    inner_F = slow_linear(layer.inner, vector_D)
    if layer.gated:
        gate_F, value_F = inner_F[: len(inner_F) // 2], inner_F[len(inner_F) // 2 :]
        return slow_linear(layer.out, gate_F / (1 + torch.exp(-gate_F)) * value_F)
    return slow_linear(layer.out, inner_F * 0.5 * (1 + torch.erf(inner_F / math.sqrt(2))))


def slow_residual(residual: Residual, hidden: list[Tensor], layer: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    inputs = [slow_norm(vector_D, residual.norm) if residual.norm_first else vector_D for vector_D in hidden]
    updates = layer(inputs)
    if residual.gate is not None:
        updates = [
            update_D / (1 + torch.exp(-slow_linear(residual.gate, input_D))) for update_D, input_D in zip(updates, inputs, strict=True)
        ]
    output = [vector_D + update_D for vector_D, update_D in zip(hidden, updates, strict=True)]
    return output if residual.norm_first else [slow_norm(vector_D, residual.norm) for vector_D in output]


def slow_encoder(encoder: SequenceEncoder, vectors: list[Tensor], times: SlowTimes | None = None) -> Tensor:
    """[L, D] of one sequence without padding; position 0 from the end is the last row of the position table."""
    offset = encoder.max_length - len(vectors)
    if encoder.position is not None:
        vectors = [vector_D + encoder.position[offset + place] for place, vector_D in enumerate(vectors)]
    hidden = [slow_norm(vector_D, encoder.input_norm) for vector_D in vectors]
    for block in encoder.blocks:
        assert isinstance(block, Block) and isinstance(block.feedforward.layer, FeedForward)
        feedforward = block.feedforward.layer
        hidden = slow_residual(block.attention, hidden, lambda inputs, block=block: slow_attention(block, encoder, inputs, times))
        hidden = slow_residual(
            block.feedforward, hidden, lambda inputs, layer=feedforward: [slow_feedforward(layer, vector_D) for vector_D in inputs]
        )
    return torch.stack([slow_linear(encoder.head, slow_norm(vector_D, encoder.output_norm)) for vector_D in hidden])


def random_items(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_ITEM_ROW, NUM_ROWS, (length,), generator=generator) for length in lengths]


def padded(items: list[Tensor], extra_columns: int = 0) -> Tensor:
    longest = max(len(items_L) for items_L in items) + extra_columns
    return torch.stack([torch.cat([torch.full((longest - len(items_L),), PADDING_ROW), items_L]) for items_L in items])


def random_times(items: list[Tensor], seed: int = 0) -> list[list[int]]:
    """Milliseconds of each item, rising, some in the same second, some years apart."""
    rng = np.random.default_rng(seed)
    return [
        (10**12 + np.cumsum(np.round(10 ** rng.uniform(0, 11, len(items_L))) * (rng.random(len(items_L)) < 0.8))).astype(int).tolist()
        for items_L in items
    ]


def padded_times(times: list[list[int]]) -> Tensor:
    longest = max(map(len, times))
    return torch.tensor([[0] * (longest - len(one)) + one for one in times])


def histories_of(items: list[Tensor]) -> tuple[Histories, list[SlowTimes]]:
    """Right-aligned, with a request some minutes after the last item; and the times of the mask or of the next item."""
    times = random_times(items)
    requests = [one[-1] + 600_000 for one in times]
    with_request = [[*one, request] for one, request in zip(times, requests, strict=True)]
    return Histories(padded(items), padded_times(times), torch.tensor(requests)[:, None]), [SlowTimes(one, one) for one in with_request]


def inputs_of(model: SequenceModel, histories: Histories) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the exported network is given."""
    items_BL = histories.items_BL
    return model.item_vectors()[items_BL], items_BL != PADDING_ROW, histories.timestamps_ms_BL, histories.request_timestamp_ms_B1


VARIANTS = {
    "bert4rec": (),
    "four heads": ("model.num_heads=4", "model.distance_slopes=[1.0, 0.3, 0.1, 0.0]"),
    "sasrec": ("objective.kind=causal",),
    "rotary": ("model.positions=rotary",),
    "no positions": ("model.positions=none",),
    "rms": ("model.norm=rms",),
    "post-norm": ("model.norm_first=false",),
    "swiglu": ("model.feedforward=swiglu",),
    "gated": ("model.gated=true",),
    "time": ("model.time_bias=true",),
    "everything": (
        "objective.kind=causal",
        "model.positions=rotary",
        "model.norm=rms",
        "model.norm_first=false",
        "model.feedforward=swiglu",
        "model.gated=true",
        "model.time_bias=true",
    ),
}
variants = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())


@torch.no_grad()
@variants
def test_encoder_equals_the_slow_one(overrides: tuple[str, ...]) -> None:
    model = random_model(*overrides)
    items = random_items([1, 3, 9, 7])
    keys, queries = random_times(items), random_times(items, seed=1)
    encoded_BLD = model.encode(padded(items), Times(padded_times(queries), padded_times(keys)))
    for place, items_L in enumerate(items):
        slow_LD = slow_encoder(model.encoder, list(model.table_RD[items_L]), SlowTimes(queries[place], keys[place]))
        torch.testing.assert_close(encoded_BLD[place, -len(items_L) :], slow_LD, atol=2e-5, rtol=2e-5)


@torch.no_grad()
@variants
def test_query_is_what_the_slow_encoder_says_of_the_next_item(overrides: tuple[str, ...]) -> None:
    """At the newest item when causal, else at a mask after it; and for the time of the request."""
    model = random_model(*overrides)
    items = random_items([1, 9, 4])
    histories, times = histories_of(items)
    for query_D, items_L, (with_request, _) in zip(model.encode_histories(histories), items, times, strict=True):
        vectors = list(model.table_RD[items_L])
        if model.encoder.causal:
            slow_LD = slow_encoder(model.encoder, vectors, SlowTimes(with_request[1:], with_request[:-1]))
        else:
            slow_LD = slow_encoder(model.encoder, [*vectors, model.table_RD[1]], SlowTimes(with_request, with_request))
        torch.testing.assert_close(query_D, slow_LD[-1], atol=2e-5, rtol=2e-5)


@torch.no_grad()
@variants
def test_query_encoder_equals_the_model(overrides: tuple[str, ...]) -> None:
    """What is exported gathers nothing: it is given the vectors of the items, zeros in the padding."""
    model = random_model(*overrides)
    network = model.query_encoder()
    for lengths in ([1], [9, 2, 1], [5, 5]):
        histories, _ = histories_of(random_items(lengths))
        query_BD = network(*inputs_of(model, histories))
        torch.testing.assert_close(query_BD, model.encode_histories(histories), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_a_causal_position_sees_nothing_newer(positions: str) -> None:
    """And without positions from the end, what comes later does not even move it."""
    model = random_model("objective.kind=causal", f"model.positions={positions}", "model.time_bias=true")
    items_BL = random_items([9])[0][None]
    times_BL = padded_times(random_times(list(items_BL)))
    changed_BL = items_BL.clone()
    changed_BL[0, 5:] = FIRST_ITEM_ROW
    before_BLD, after_BLD = (model.encode(rows_BL, Times(times_BL, times_BL)) for rows_BL in (items_BL, changed_BL))
    torch.testing.assert_close(before_BLD[0, :5], after_BLD[0, :5])
    assert not torch.allclose(before_BLD[0, 5:], after_BLD[0, 5:], atol=1e-2)
    shorter_BLD = model.encode(items_BL[:, :6], Times(times_BL[:, :6], times_BL[:, :6]))
    torch.testing.assert_close(shorter_BLD, before_BLD[:, :6], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_the_time_of_the_request_matters_only_to_a_model_with_time() -> None:
    histories, _ = histories_of(random_items([5, 9]))
    later = Histories(histories.items_BL, histories.timestamps_ms_BL, histories.request_timestamp_ms_B1 + 10**10)
    for kind in ("masked", "causal"):
        plain, aware = (random_model(f"objective.kind={kind}", f"model.time_bias={aware}") for aware in ("false", "true"))
        assert torch.equal(plain.encode_histories(histories), plain.encode_histories(later))
        assert not torch.allclose(aware.encode_histories(histories), aware.encode_histories(later), atol=1e-2)


@given(elapsed_ms=st.integers(-(10**12), 10**12) | st.integers(0, 40).map(lambda power: 1000 * (2**power - 1)))
def test_time_buckets_equal_the_slow_ones(elapsed_ms: int) -> None:
    now = torch.tensor([[10**13]])
    assert int(time_buckets(now + elapsed_ms, now)) == slow_bucket(elapsed_ms)


def test_the_gradient_of_the_time_table_counts_every_use() -> None:
    model = random_model("model.time_bias=true", "model.num_blocks=1")
    block = model.encoder.blocks[0]
    assert isinstance(block, Block) and block.time_bias is not None
    buckets_BLL = torch.randint(0, 128, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    weights_BHLL = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    (block.time_bias(buckets_BLL) * weights_BHLL).sum().backward()
    ours_NH = block.time_bias.table_NH.grad
    plain_NH = block.time_bias.table_NH.detach().clone().requires_grad_()
    (plain_NH[buckets_BLL].permute(0, 3, 1, 2) * weights_BHLL).sum().backward()
    assert ours_NH is not None and plain_NH.grad is not None
    torch.testing.assert_close(ours_NH, plain_NH.grad)


@torch.no_grad()
def test_query_encoder_shares_no_memory_with_the_table() -> None:
    model = random_model()
    network, inputs = model.query_encoder(), inputs_of(model, untimed(padded(random_items([4]))))
    before_BD = network(*inputs)
    model.table_RD.zero_()
    assert torch.equal(network(*inputs), before_BD)


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
    vectors_BLD, mask_BL, *times = inputs_of(model, untimed(items_BL))
    spoilt_BLD = torch.where(mask_BL[..., None], vectors_BLD, 1e4)
    torch.testing.assert_close(network(spoilt_BLD, mask_BL, *times), network(vectors_BLD, mask_BL, *times), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_order_and_every_item_matter() -> None:
    model = random_model()
    items_L = random_items([9])[0]
    query_D = model.encode_histories(untimed(items_L[None]))[0]
    assert not torch.allclose(model.encode_histories(untimed(items_L.flip(0)[None]))[0], query_D, atol=1e-3)
    for place in range(len(items_L)):
        changed_L = items_L.clone()
        changed_L[place] = FIRST_ITEM_ROW + (items_L[place] - FIRST_ITEM_ROW + 1) % (NUM_ROWS - FIRST_ITEM_ROW)
        assert not torch.allclose(model.encode_histories(untimed(changed_L[None]))[0], query_D, atol=1e-4), f"place {place} is not read"


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5])
def test_an_empty_history_gives_finite_numbers(length: int) -> None:
    model = random_model()
    empty_BL = torch.full((2, length), PADDING_ROW)
    query_BD = model.encode_histories(untimed(empty_BL))
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
        model = SequenceModel(small_recipe(f"training.seed={seed}"), torch.zeros(NUM_ROWS, dtype=torch.float64), total_steps=1)
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
