"""The parts of a transformer block, and the choices a recipe has for each.

Shape legend: B sequences, L padded length, D width, H heads, K = D / H, F feed-forward width, N time buckets.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ModelConfig
from training.dropout import Dropout

ROTARY_BASE = 10_000.0
NUM_TIME_BUCKETS = 64
_EDGE = 1e-9  # keeps exact powers of two in their bucket whatever a runtime's logarithm rounds to


def norm(config: ModelConfig) -> nn.Module:
    """Layer norm, or RMS norm (Zhang and Sennrich, 2019), which neither centres nor shifts."""
    return nn.LayerNorm(config.dim) if config.norm == "layer" else nn.RMSNorm(config.dim, eps=1e-5)


class Attention(nn.Module):
    """Multi-head self-attention under a given bias, with rotary positions where the recipe wants them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, hidden_BLD: Tensor, bias_BHLL: Tensor, rotation_LK: Tensor | None) -> Tensor:
        """`bias_BHLL` is added to the attention logits; -inf forbids."""
        projected_BL3HK = self.query_key_value(hidden_BLD).unflatten(-1, (3, self.num_heads, -1))
        query_BHLK, key_BHLK, value_BHLK = projected_BL3HK.permute(2, 0, 3, 1, 4).unbind(0)
        if rotation_LK is not None:
            query_BHLK, key_BHLK = rotate(query_BHLK, rotation_LK), rotate(key_BHLK, rotation_LK)
        attended_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, attn_mask=bias_BHLL)
        attended_BLD: Tensor = self.out(attended_BHLK.transpose(1, 2).flatten(-2))
        return attended_BLD


class FeedForward(nn.Module):
    """Two layers with GELU between them, or SwiGLU (Shazeer, 2020), whose first layer also makes a gate."""

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
    """A layer beside a residual path: normalised before it or after the sum, and gated where the recipe wants it.

    The gate multiplies what the layer adds by sigmoid(W x + b), as in LiGR (Borisyuk et al., 2025, "From features to
    transformers: redefining ranking for scalable impact").
    """

    def __init__(self, config: ModelConfig, layer: Attention | FeedForward) -> None:
        super().__init__()
        self.norm = norm(config)
        self.norm_first = config.norm_first
        self.layer = layer
        self.gate = nn.Linear(config.dim, config.dim) if config.gated else None

    def forward(self, hidden_BLD: Tensor, dropout: Dropout | None, *context: Tensor | None) -> Tensor:
        inner_BLD = self.norm(hidden_BLD) if self.norm_first else hidden_BLD
        update_BLD = self.layer(inner_BLD, *context)
        if self.gate is not None:
            update_BLD = update_BLD * torch.sigmoid(self.gate(inner_BLD))
        out_BLD = hidden_BLD + (dropout(update_BLD) if dropout else update_BLD)
        return out_BLD if self.norm_first else self.norm(out_BLD)


class Block(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Residual(config, Attention(config))
        self.feedforward = Residual(config, FeedForward(config))
        self.time_bias = TimeBias(config) if config.time_bias else None

    def forward(
        self, hidden_BLD: Tensor, bias_BHLL: Tensor, buckets_BLL: Tensor | None, rotation_LK: Tensor | None, dropout: Dropout | None
    ) -> Tensor:
        """Each position attends to those that `bias_BHLL` allows; `buckets_BLL` are the `time_buckets` between positions."""
        if self.time_bias is not None:
            bias_BHLL = bias_BHLL + self.time_bias(buckets_BLL)
        return self.feedforward(self.attention(hidden_BLD, dropout, bias_BHLL, rotation_LK), dropout)


class TimeBias(nn.Module):
    """A learned attention bias of each head for each time between two events (Zhai et al., 2024, HSTU; here for both directions)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table_NH = nn.Parameter(torch.zeros(2 * NUM_TIME_BUCKETS, config.num_heads))

    def forward(self, buckets_BLL: Tensor) -> Tensor:
        """[B, H, L, L] to add to attention logits."""
        bias_BHLL: Tensor = _TableLookup.apply(self.table_NH, buckets_BLL)
        return bias_BHLL


class _TableLookup(torch.autograd.Function):
    """Rows of a tiny table for very many indices; the gradient counts by bucket, where PyTorch's own adds row after row."""

    @staticmethod
    def forward(ctx: Any, table_NH: Tensor, buckets_BLL: Tensor) -> Tensor:
        ctx.save_for_backward(buckets_BLL)
        ctx.num_buckets = len(table_NH)
        return F.embedding(buckets_BLL, table_NH).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (buckets_BLL,) = ctx.saved_tensors
        flat_T = buckets_BLL.flatten()
        grad_HT = grad_outputs[0].transpose(0, 1).flatten(1)
        counted_HN = [torch.bincount(flat_T, weights=grad_T, minlength=ctx.num_buckets) for grad_T in grad_HT]
        return torch.stack(counted_HN, dim=1).to(grad_HT.dtype), None


def time_buckets(query_times_ms_BL: Tensor, key_times_ms_BL: Tensor) -> Tensor:
    """int64 [B, L, L] bucket of the time from each key to each query: two an octave of whole seconds, apart for past and future."""
    elapsed_s_BLL = torch.div(query_times_ms_BL[:, :, None] - key_times_ms_BL[:, None, :], 1000, rounding_mode="trunc")
    octaves_BLL = torch.log2(elapsed_s_BLL.abs().double() + 1)
    buckets_BLL = (2 * octaves_BLL + _EDGE).long().clamp_max(NUM_TIME_BUCKETS - 1)
    return torch.where(elapsed_s_BLL < 0, buckets_BLL + NUM_TIME_BUCKETS, buckets_BLL)


def rotary_angles(length: int, head_width: int) -> Tensor:
    """float32 [L, K / 2] angles of positions 0 .. L - 1 (Su et al., 2021, RoFormer)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    return (torch.arange(length, dtype=torch.float64)[:, None] * frequency).float()


def rotate(vectors_BHLK: Tensor, angles_LK: Tensor) -> Tensor:
    """Turn each pair (k, k + K / 2) of a vector by its position's angle, so that inner products depend on distance alone."""
    first, second = vectors_BHLK.chunk(2, dim=-1)
    cosine, sine = angles_LK.cos(), angles_LK.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
