"""A slow encoder without batches and padding: one sequence, one position, one head at a time.

Shape legend: L length, D width, H heads, K = D / H, F width of the feed-forward layer.
"""

import cmath
import math
from collections.abc import Callable, Collection
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from tests.support.encoders import SlowTimes
from training.model.encoder import SequenceEncoder
from training.model.layers import Attention, Block, FeedForward, Residual
from training.model.sequence_model import SequenceModel
from training.model.towers import FeatureInput


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
    """Returns one of two buckets per octave of whole seconds; negative durations are in the second half."""
    seconds = abs(elapsed_ms) // 1000
    bucket = min(math.floor(2 * math.log2(seconds + 1) + 1e-9), 63)
    return bucket + 64 if elapsed_ms < 0 and seconds else bucket


def slow_rotated(vector_K: Tensor, position: int) -> Tensor:
    """Rotates pairs (k, k + K / 2) as complex numbers."""
    half = len(vector_K) // 2
    turned = [
        complex(vector_K[k], vector_K[k + half]) * cmath.exp(1j * position * 10_000 ** (-k / half))
        for k in range(half)
    ]
    return torch.tensor([number.real for number in turned] + [number.imag for number in turned])


def slow_gap(encoder: SequenceEncoder, times: SlowTimes, position: int) -> Tensor:
    """Returns the vector for the time between the predicted item and the item before it."""
    assert encoder.time_gap is not None
    before = position if encoder.causal else position - 1
    if before < 0:
        return torch.zeros(encoder.time_gap.table_ND.shape[1])
    return encoder.time_gap.table_ND[slow_bucket(times.query[position] - times.key[before])]


def slow_attention(
    block: Block,
    encoder: SequenceEncoder,
    inputs: list[Tensor],
    times: SlowTimes | None,
    masked: Collection[int],
) -> list[Tensor]:
    """Returns attended values, computed head by head and position by position."""
    attention, length, width = block.attention.layer, len(inputs), len(inputs[0])
    assert isinstance(attention, Attention)
    slopes = encoder.slopes_H.tolist()
    directions = encoder.direction_H.expand(len(slopes)).tolist()
    size = width // len(slopes)
    projected = [slow_linear(attention.query_key_value, vector_D) for vector_D in inputs]
    offset = encoder.max_length - length
    output = []
    for position in range(length):
        heads = []
        for head, slope in enumerate(slopes):
            start = head * size
            query_K = projected[position][start : start + size]
            sides = {1: range(position + 1), 0: range(length), -1: range(position, length)}
            seen = [other for other in sides[directions[head]] if other == position or other not in masked]
            logits = []
            for other in seen:
                key_K = projected[other][width + start : width + start + size]
                turned = (query_K, key_K)
                if encoder.angles_LK is not None:
                    turned = (slow_rotated(query_K, offset + position), slow_rotated(key_K, offset + other))
                logit = float(turned[0] @ turned[1]) / math.sqrt(size) - slope * abs(position - other)
                if attention.time_table_NH is not None:
                    assert times is not None
                    logit += float(
                        attention.time_table_NH[slow_bucket(times.query[position] - times.key[other]), head]
                    )
                logits.append(logit)
            shares = [math.exp(logit - max(logits)) for logit in logits]
            values = [projected[other][2 * width + start : 2 * width + start + size] for other in seen]
            heads.append(
                sum(
                    (share / sum(shares) * value_K for share, value_K in zip(shares, values, strict=True)),
                    torch.zeros(size),
                )
            )
        output.append(slow_linear(attention.out, torch.cat(heads)))
    return output


def slow_feedforward(layer: FeedForward, vector_D: Tensor) -> Tensor:
    inner_F = slow_linear(layer.inner, vector_D)
    if layer.gated:
        gate_F, value_F = inner_F[: len(inner_F) // 2], inner_F[len(inner_F) // 2 :]
        return slow_linear(layer.out, gate_F / (1 + torch.exp(-gate_F)) * value_F)
    return slow_linear(layer.out, inner_F * 0.5 * (1 + torch.erf(inner_F / math.sqrt(2))))


def slow_residual(
    residual: Residual, hidden: list[Tensor], layer: Callable[[list[Tensor]], list[Tensor]]
) -> list[Tensor]:
    inputs = [slow_norm(vector_D, residual.norm) if residual.norm_first else vector_D for vector_D in hidden]
    updates = layer(inputs)
    if residual.gate is not None:
        updates = [
            update_D / (1 + torch.exp(-slow_linear(residual.gate, input_D)))
            for update_D, input_D in zip(updates, inputs, strict=True)
        ]
    output = [vector_D + update_D for vector_D, update_D in zip(hidden, updates, strict=True)]
    return output if residual.norm_first else [slow_norm(vector_D, residual.norm) for vector_D in output]


def slow_encoder(
    encoder: SequenceEncoder,
    vectors: list[Tensor],
    times: SlowTimes | None = None,
    masked: Collection[int] = (),
    types: list[int] | None = None,
) -> Tensor:
    """Returns contextual vectors [L, D] of one sequence without padding.

    The newest position takes the last row of the position table.

    Args:
        masked: positions of masked items.
    """
    offset = encoder.max_length - len(vectors)
    if encoder.position is not None:
        vectors = [
            vector_D + encoder.position[offset + position] for position, vector_D in enumerate(vectors)
        ]
    if encoder.time_gap is not None:
        assert times is not None
        vectors = [vector_D + slow_gap(encoder, times, position) for position, vector_D in enumerate(vectors)]
    if encoder.event_type is not None:
        assert types is not None
        events = enumerate(zip(vectors, types, strict=True))
        vectors = [
            vector_D if position in masked else vector_D + encoder.event_type[kind]
            for position, (vector_D, kind) in events
        ]
    states = [slow_norm(vector_D, encoder.input_norm) for vector_D in vectors]
    if not encoder.blocks:
        states = [torch.stack(states[: position + 1]).mean(0) for position in range(len(states))]
    for block in encoder.blocks:
        assert isinstance(block, Block) and isinstance(block.feedforward.layer, FeedForward)
        feedforward = block.feedforward.layer
        states = slow_residual(
            block.attention,
            states,
            lambda inputs, block=block: slow_attention(block, encoder, inputs, times, masked),
        )
        states = slow_residual(
            block.feedforward,
            states,
            lambda inputs, layer=feedforward: [slow_feedforward(layer, vector_D) for vector_D in inputs],
        )
    return torch.stack(
        [slow_linear(encoder.head, slow_norm(vector_D, encoder.output_norm)) for vector_D in states]
    )


def slow_columns(part: FeatureInput, codes: Tensor, numbers: Tensor) -> list[float]:
    """Returns the inputs of a layer for the features of one row."""
    given: list[float] = []
    for slots in part.slots:
        vectors = [part.codes_VC[code] for code in codes[slots].tolist() if code != 0]
        given += (torch.stack(vectors).mean(0) if vectors else torch.zeros(part.codes_VC.shape[1])).tolist()
    return given + numbers.tolist()


def slow_query(model: SequenceModel, history_D: Tensor, user: int, event: int, time_ms: int) -> Tensor:
    """Returns the query of a history, a user and an event (-1: unknown)."""
    tower, features = model.query_tower, model.query_features
    if tower is None:
        return history_D
    assert features is not None
    given = history_D.tolist()
    for name, part, row in (("user", tower.user, user), ("context", tower.context, event)):
        if part is not None:
            given += slow_columns(
                part, *(getattr(features, f"{name}_{kind}")[row] for kind in ("codes", "numbers"))
            )
    utc = datetime.fromtimestamp(time_ms / 1000, UTC)
    for table_VC, row in ((tower.hour_VC, utc.hour), (tower.weekday_VC, utc.weekday())):
        if table_VC is not None:
            given += table_VC[row].tolist()
    hidden_H = slow_linear(tower.inner, torch.tensor(given))
    return history_D + slow_linear(tower.out, hidden_H * 0.5 * (1 + torch.erf(hidden_H / math.sqrt(2))))
