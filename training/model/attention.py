"""Attention with biases of a recipe: by distance, by direction, and optionally by elapsed time.

Two kernels compute the same.
`DenseAttention` adds a [B, H, L, L] bias to the logits of PyTorch's fused kernels.
Batches hold histories of similar length, so little of it is padding.
`FlexAttention` computes the bias inside the kernel and skips blocks of pairs that are not allowed.
It makes a bool mask of each pair once a batch, and once more where the last block computes few columns.
It needs a CUDA device, for PyTorch has no backward pass of it elsewhere.

Shape legend: B sequences, L padded length, P queries of each (L of them, or fewer), H heads,
K width of a head, N time buckets.
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
    """Which positions of padded sequences may attend to which, and the biases of their logits."""

    visible_BL: Tensor
    """bool; False in the padding and at masked items.

    Such positions are attended to by themselves alone, so that every row has a key.
    """
    slopes_H: Tensor
    """float32; the fall of a head's logits with each item of distance."""
    direction_H: Tensor
    """int64, for each head or for all: 1 attends to older positions, -1 to newer ones, 0 to both."""
    buckets_BLL: Tensor | None
    """int64 time bucket of each query and key; None for encoders without a time bias."""


class AttentionKernel(Protocol):
    """Maps queries [B, H, P, K], keys and values [B, H, L, K] to attended values [B, H, P, K].

    `table_NH` holds the bias of each time bucket.
    `columns_BP` holds the columns of the queries; None: all.
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
    """Attention with the whole bias in memory."""

    def __init__(self, bias: AttentionBias) -> None:
        visible_BL = bias.visible_BL
        position_L = torch.arange(visible_BL.shape[1], device=visible_BL.device)
        distance_LL = position_L[:, None] - position_L[None, :]
        allowed_BLL = visible_BL[:, None, :] | (distance_LL == 0)
        bias_HLL = -bias.slopes_H[:, None, None] * distance_LL.abs()
        bias_HLL = torch.where(bias.direction_H[:, None, None] * distance_LL >= 0, bias_HLL, float("-inf"))
        self._bias_BHLL = torch.where(allowed_BLL[:, None], bias_HLL, float("-inf"))
        self._buckets_BLL = bias.buckets_BLL

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
            bias_BHPL = take_columns(bias_BHPL.transpose(1, 2), columns_BP).transpose(1, 2)
            buckets_BPL = None if buckets_BPL is None else take_columns(buckets_BPL, columns_BP)
        if table_NH is not None:
            assert buckets_BPL is not None
            bias_BHPL = bias_BHPL + time_bias(table_NH, buckets_BPL)
        return F.scaled_dot_product_attention(query_BHPK, key_BHLK, value_BHLK, attn_mask=bias_BHPL)


class FlexAttention:
    """Attention with the bias computed inside the kernel."""

    def __init__(self, bias: AttentionBias, kernel: Callable[..., Any] | None = None) -> None:
        self._bias = bias
        self._kernel = kernel or _compiled_kernel()
        visible_BL = bias.visible_BL
        self._all_columns_BL = torch.arange(visible_BL.shape[1], device=visible_BL.device).expand_as(
            visible_BL
        )
        self._blocks = self._block_mask(self._all_columns_BL)

    def _block_mask(self, columns_BP: Tensor) -> Any:
        visible_BL, direction_H = self._bias.visible_BL, self._bias.direction_H
        # The kernel asks for every head, even where one block mask serves all.
        is_shared = len(direction_H) == 1

        def allowed(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            column = columns_BP[b, query]
            seen = visible_BL[b, key] | (column == key)
            direction = direction_H[0] if is_shared else direction_H[h]
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
        slopes_H, buckets_BLL = self._bias.slopes_H, self._bias.buckets_BLL
        query_columns_BP = self._all_columns_BL if columns_BP is None else columns_BP

        def biased(logit: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            column = query_columns_BP[b, query]
            logit = logit - slopes_H[h] * (column - key).abs()
            return (
                logit
                if table_NH is None or buckets_BLL is None
                else logit + table_NH[buckets_BLL[b, column, key], h]
            )

        blocks = self._blocks if columns_BP is None else self._block_mask(columns_BP)
        attended_BHPK: Tensor = self._kernel(
            query_BHPK, key_BHLK, value_BHLK, score_mod=biased, block_mask=blocks
        )
        return attended_BHPK


def take_columns(values_BL: Tensor, columns_BP: Tensor) -> Tensor:
    """Returns the values [B, P, ...] of int64 columns of [B, L, ...]."""
    index = columns_BP.reshape(*columns_BP.shape, *[1] * (values_BL.ndim - 2)).expand(
        -1, -1, *values_BL.shape[2:]
    )
    return values_BL.gather(1, index)


@functools.cache
def _compiled_kernel() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def time_bias(table_NH: Tensor, buckets_BLL: Tensor) -> Tensor:
    """Returns the bias [B, H, L, L] of each head for the time bucket of each query and key."""
    bias_BHLL: Tensor = _TableLookup.apply(table_NH, buckets_BLL)
    return bias_BHLL


class _TableLookup(torch.autograd.Function):
    """Looks up many rows of a tiny table.

    The gradient sums by bucket, where PyTorch's own adds row after row.
    """

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
        sums_HN = [torch.bincount(flat_T, weights=grad_T, minlength=ctx.num_buckets) for grad_T in grad_HT]
        return torch.stack(sums_HN, dim=1).to(grad_HT.dtype), None
