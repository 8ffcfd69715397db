"""The layers of a transformer block, with the variants that a recipe may choose.

Shape legend: B sequences, L padded length, P requested columns of each, D width, H heads, K = D / H,
F feed-forward width, N time buckets.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.attention import AttentionKernel, take_columns
from training.model.dropout import Dropout
from training.model_config import ModelConfig

ROTARY_BASE = 10_000.0
NUM_TIME_BUCKETS = 64
# Keeps exact powers of two in their bucket whatever a runtime's logarithm rounds to.
_EDGE = 1e-9


def norm(config: ModelConfig) -> nn.Module:
    """Returns layer norm, or RMS norm (Zhang and Sennrich, 2019), which neither centres nor shifts."""
    return nn.LayerNorm(config.dim) if config.norm == "layer" else nn.RMSNorm(config.dim, eps=1e-5)


class Attention(nn.Module):
    """Multi-head self-attention, optionally with rotary positions and a time bias.

    The time bias is a learned logit of each head for the time between two events
    (Zhai et al., 2024, HSTU; here for both directions).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.time_table_NH = (
            nn.Parameter(torch.zeros(2 * NUM_TIME_BUCKETS, config.num_heads)) if config.time_bias else None
        )

    def forward(
        self, hidden_BLD: Tensor, columns_BP: Tensor | None, kernel: AttentionKernel, angles_LK: Tensor | None
    ) -> Tensor:
        """Returns attended values of the columns `columns_BP`, [B, P, D], or of all columns, [B, L, D]."""
        if columns_BP is None:
            query_key_value_BLF = self.query_key_value(hidden_BLD)
            query_BPD, key_value_BLF = query_key_value_BLF.tensor_split([hidden_BLD.shape[-1]], dim=-1)
        else:
            # Keys and values of all columns, queries of some.
            (query_DD, key_value_FD), (query_D, key_value_F) = (
                parameter.tensor_split([hidden_BLD.shape[-1]])
                for parameter in (self.query_key_value.weight, self.query_key_value.bias)
            )
            query_BPD = F.linear(take_columns(hidden_BLD, columns_BP), query_DD, query_D)
            key_value_BLF = F.linear(hidden_BLD, key_value_FD, key_value_F)
        query_BHPK = query_BPD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key_BHLK, value_BHLK = (
            key_value_BLF.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if angles_LK is not None:
            key_BHLK = rotate(key_BHLK, angles_LK)
            query_BHPK = rotate(
                query_BHPK, angles_LK if columns_BP is None else angles_LK[columns_BP][:, None]
            )
        attended_BHPK = kernel(query_BHPK, key_BHLK, value_BHLK, self.time_table_NH, columns_BP)
        attended_BPD: Tensor = self.out(attended_BHPK.transpose(1, 2).flatten(-2))
        return attended_BPD


class FeedForward(nn.Module):
    """Two layers with GELU between them, or SwiGLU (Shazeer, 2020), which adds a gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.feedforward_multiple * config.dim
        self.gated = config.feedforward == "swiglu"
        self.inner = nn.Linear(config.dim, 2 * width if self.gated else width)
        self.out = nn.Linear(width, config.dim)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        inner_BLF = self.inner(hidden_BLD)
        if self.gated:
            gate_BLF, value_BLF = inner_BLF.chunk(2, dim=-1)
            inner_BLF = F.silu(gate_BLF) * value_BLF
        else:
            inner_BLF = F.gelu(inner_BLF)
        out_BLD: Tensor = self.out(inner_BLF)
        return out_BLD


class Residual(nn.Module):
    """A layer with a residual connection, normalised before the layer or after the sum, and optionally gated.

    The gate multiplies the update by sigmoid(W x + b), as in LiGR (Borisyuk et al., 2025, "From features to
    transformers: redefining ranking for scalable impact").
    """

    def __init__(self, config: ModelConfig, layer: Attention | FeedForward) -> None:
        super().__init__()
        self.norm = norm(config)
        self.norm_first = config.norm_first
        self.layer = layer
        self.gate = nn.Linear(config.dim, config.dim) if config.gated else None

    def input(self, hidden_BLD: Tensor) -> Tensor:
        """Returns the input of the layer."""
        return self.norm(hidden_BLD) if self.norm_first else hidden_BLD

    def output(
        self,
        hidden_BPD: Tensor,
        input_BPD: Tensor,
        update_BPD: Tensor,
        noise: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Returns hidden states plus the update that the layer computed from its input.

        Args:
            noise: the dropout of the update.
        """
        if self.gate is not None:
            update_BPD = update_BPD * torch.sigmoid(self.gate(input_BPD))
        out_BPD = hidden_BPD + (noise(update_BPD) if noise else update_BPD)
        return out_BPD if self.norm_first else self.norm(out_BPD)


class Block(nn.Module):
    """Self-attention, then a feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Residual(config, Attention(config))
        self.feedforward = Residual(config, FeedForward(config))

    def forward(
        self,
        hidden_BLD: Tensor,
        columns_BP: Tensor | None,
        kernel: AttentionKernel,
        angles_LK: Tensor | None,
        dropout: Dropout | None,
    ) -> Tensor:
        """Returns hidden states of the columns `columns_BP`, [B, P, D], or of all, [B, L, D].

        Other columns only provide keys and values.
        """
        noise = partial(dropout, columns_BP=columns_BP) if dropout else None
        input_BLD = self.attention.input(hidden_BLD)
        update_BPD = self.attention.layer(input_BLD, columns_BP, kernel, angles_LK)
        hidden_BPD, input_BPD = (
            values if columns_BP is None else take_columns(values, columns_BP)
            for values in (hidden_BLD, input_BLD)
        )
        hidden_BPD = self.attention.output(hidden_BPD, input_BPD, update_BPD, noise)
        input_BPD = self.feedforward.input(hidden_BPD)
        return self.feedforward.output(hidden_BPD, input_BPD, self.feedforward.layer(input_BPD), noise)


class TimeGap(nn.Module):
    """A learned vector for the time between the item that a position predicts and the event before it.

    After a month away, users choose differently than within a session.
    Attention over past times does not tell a position how long it has been (docs/decisions.md has the
    figures).
    """

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.table_ND = nn.Parameter(torch.empty(2 * NUM_TIME_BUCKETS, config.dim))

    def forward(self, query_times_ms_BL: Tensor, key_times_ms_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Returns [B, L, D] to add to item vectors.

        The vectors of a bidirectional encoder are zero where a position has no event before it.
        """
        if self.causal:
            # A position predicts the item after its own.
            return F.embedding(time_buckets(query_times_ms_BL - key_times_ms_BL), self.table_ND)
        later_BLD = F.embedding(
            time_buckets(query_times_ms_BL[:, 1:] - key_times_ms_BL[:, :-1]), self.table_ND
        )
        return F.pad(later_BLD * mask_BL[:, :-1, None], (0, 0, 1, 0))


def time_buckets(elapsed_ms: Tensor) -> Tensor:
    """Returns int64 buckets of durations: two per octave of whole seconds, others for negative durations."""
    elapsed_s = torch.div(elapsed_ms, 1000, rounding_mode="trunc")
    octaves = torch.log2(elapsed_s.abs().double() + 1)
    buckets = (2 * octaves + _EDGE).long().clamp_max(NUM_TIME_BUCKETS - 1)
    return torch.where(elapsed_s < 0, buckets + NUM_TIME_BUCKETS, buckets)


def rotary_angles(length: int, head_width: int) -> Tensor:
    """Returns float32 angles [L, K / 2] of positions 0 .. L - 1 (Su et al., 2021, RoFormer)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    return (torch.arange(length, dtype=torch.float64)[:, None] * frequency).float()


def rotate(vectors_BHLK: Tensor, angles_LK: Tensor) -> Tensor:
    """Rotates each pair (k, k + K / 2) of a vector by its position's angle.

    Inner products then depend on distance alone.
    """
    first, second = vectors_BHLK.chunk(2, dim=-1)
    cosine, sine = angles_LK.cos(), angles_LK.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
