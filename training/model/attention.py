"""Attention under a recipe's preferences: near rather than far, perhaps only the past, perhaps by elapsed time.

Two kernels with one meaning. `DenseAttention` adds a [B, H, L, L] bias to the logits of PyTorch's fused kernels: batches hold
histories of like length, so little of it is padding. `FlexAttention` computes the same bias inside the kernel and skips
blocks that nothing may see, for which a bool mask of each pair is made once a batch, and once more where the last block answers few
positions; it needs a CUDA device, for PyTorch has no backward pass of it elsewhere.

Shape legend: B sequences, L padded length, P queries of each (L of them, or fewer), H heads, K width of a head, N time buckets.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


@dataclass(frozen=True)
class AttentionBias:
    """What the positions of some padded sequences may attend to, and how much their logits fall."""

    visible_BL: Tensor
    """bool; False in the padding and where the item is hidden, which nothing but itself attends to (so that no row is without a key)."""
    slopes_H: Tensor
    """float32; what a head's logits lose with each item of distance."""
    direction_H: Tensor
    """int64, one a head or one for all; positions see themselves and, where 1, older ones only, where -1, newer ones only, where 0, all."""
    buckets_BLL: Tensor | None
    """int64 time bucket of each query and key, for encoders whose heads prefer some."""


class AttentionKernel(Protocol):
    """Queries [B, H, P, K], keys and values [B, H, L, K] and a table [N, H] of logits for each time bucket to attended values.

    `columns_BP` says which positions the queries are of; without it, of all.
    """

    def __call__(
        self,
        query_BHPK: Tensor,
        key_BHLK: Tensor,
        value_BHLK: Tensor,
        table_NH: Tensor | None,
        columns_BP: Tensor | None,
    ) -> Tensor: ...


class DenseAttention:
    """With the whole bias in memory."""

    def __init__(self, preferences: AttentionBias) -> None:
        visible_BL, slopes_H, direction_H = (
            preferences.visible_BL,
            preferences.slopes_H,
            preferences.direction_H,
        )
        position_L = torch.arange(visible_BL.shape[1], device=visible_BL.device)
        distance_LL = position_L[:, None] - position_L[None, :]
        allowed_BLL = visible_BL[:, None, :] | (distance_LL == 0)
        bias_HLL = -slopes_H[:, None, None] * distance_LL.abs()
        bias_HLL = torch.where(direction_H[:, None, None] * distance_LL >= 0, bias_HLL, float("-inf"))
        self._bias_BHLL = torch.where(allowed_BLL[:, None], bias_HLL, float("-inf"))
        self._buckets_BLL = preferences.buckets_BLL

    def __call__(
        self,
        query_BHPK: Tensor,
        key_BHLK: Tensor,
        value_BHLK: Tensor,
        table_NH: Tensor | None,
        columns_BP: Tensor | None,
    ) -> Tensor:
        bias_BHPL, buckets_BPL = self._bias_BHLL, self._buckets_BLL
        if columns_BP is not None:
            bias_BHPL = take(bias_BHPL.transpose(1, 2), columns_BP).transpose(1, 2)
            buckets_BPL = None if buckets_BPL is None else take(buckets_BPL, columns_BP)
        if table_NH is not None:
            assert buckets_BPL is not None
            bias_BHPL = bias_BHPL + time_bias(table_NH, buckets_BPL)
        return F.scaled_dot_product_attention(query_BHPK, key_BHLK, value_BHLK, attn_mask=bias_BHPL)


class FlexAttention:
    """With the bias computed where it is used."""

    def __init__(self, preferences: AttentionBias, kernel: Callable[..., Any] | None = None) -> None:
        self._preferences = preferences
        self._kernel = kernel or _compiled_kernel()
        visible_BL = preferences.visible_BL
        self._every_BL = torch.arange(visible_BL.shape[1], device=visible_BL.device).expand_as(visible_BL)
        self._blocks = self._visible(self._every_BL)

    def _visible(self, columns_BP: Tensor) -> Any:
        visible_BL, direction_H = self._preferences.visible_BL, self._preferences.direction_H
        shared = len(direction_H) == 1  # the kernel asks for every head, though one block mask serves all

        def allowed(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            column = columns_BP[b, query]
            seen = visible_BL[b, key] | (column == key)
            direction = direction_H[0] if shared else direction_H[h]
            return seen & (direction * (column - key) >= 0)

        num_keys, device = visible_BL.shape[1], visible_BL.device
        return create_block_mask(
            allowed, len(visible_BL), len(direction_H), columns_BP.shape[1], num_keys, device=device
        )

    def __call__(
        self,
        query_BHPK: Tensor,
        key_BHLK: Tensor,
        value_BHLK: Tensor,
        table_NH: Tensor | None,
        columns_BP: Tensor | None,
    ) -> Tensor:
        slopes_H, buckets_BLL = self._preferences.slopes_H, self._preferences.buckets_BLL
        asked_BP = self._every_BL if columns_BP is None else columns_BP

        def preferred(logit: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            column = asked_BP[b, query]
            logit = logit - slopes_H[h] * (column - key).abs()
            return (
                logit
                if table_NH is None or buckets_BLL is None
                else logit + table_NH[buckets_BLL[b, column, key], h]
            )

        blocks = self._blocks if columns_BP is None else self._visible(columns_BP)
        attended_BHPK: Tensor = self._kernel(
            query_BHPK, key_BHLK, value_BHLK, score_mod=preferred, block_mask=blocks
        )
        return attended_BHPK


def take(values_BL: Tensor, columns_BP: Tensor) -> Tensor:
    """The values [B, P, ...] of some columns of [B, L, ...]."""
    index = columns_BP.reshape(*columns_BP.shape, *[1] * (values_BL.ndim - 2)).expand(
        -1, -1, *values_BL.shape[2:]
    )
    return values_BL.gather(1, index)


@functools.cache
def _compiled_kernel() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def time_bias(table_NH: Tensor, buckets_BLL: Tensor) -> Tensor:
    """[B, H, L, L] logits of each head for the time bucket of each query and key."""
    bias_BHLL: Tensor = _TableLookup.apply(table_NH, buckets_BLL)
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
