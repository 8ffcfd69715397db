"""Softmax losses over the catalogue: exact in chunks, or over shared negatives with the logQ correction.

Both return the weighted *sum* over positions, so that ranks with different numbers of positions add up to the right mean.

Shape legend: M target positions, D width, R item rows (special rows included), N negatives, C chunk of positions.
"""

from typing import Any

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.samplers import Sampler

CPU_LOGITS, ACCELERATOR_LOGITS = 2**20, 2**26
FEWEST_POSITIONS = 64  # of a chunk, however large the catalogue: fewer would read the table once for next to nothing


class _FullSoftmax(torch.autograd.Function):
    """The loss and its gradients chunk by chunk, in one pass: logits are held for one chunk, and never computed twice."""

    @staticmethod
    def forward(ctx: Any, query_MD: Tensor, items_ID: Tensor, target_M: Tensor, weights_M: Tensor, chunk_size: int) -> Tensor:
        grad_query_MD, grad_items_ID = torch.empty_like(query_MD), torch.zeros_like(items_ID)
        loss = torch.zeros((), dtype=items_ID.dtype, device=items_ID.device)
        for start in range(0, len(query_MD), chunk_size):
            chunk = slice(start, start + chunk_size)
            query_CD, target_C, weights_C1 = query_MD[chunk], target_M[chunk], weights_M[chunk, None].to(items_ID.dtype)
            logits_CI = (query_CD @ items_ID.T).to(items_ID.dtype)
            target_logit_C1, largest_C1 = logits_CI.gather(1, target_C[:, None]), logits_CI.amax(1, keepdim=True)
            exponential_CI = logits_CI.sub_(largest_C1).exp_()
            total_C1 = exponential_CI.sum(1, keepdim=True)
            loss += ((total_C1.log() + largest_C1 - target_logit_C1) * weights_C1).sum()
            scale_C1 = weights_C1 / total_C1  # applied to the narrow matrices: a pass over the logits costs more
            grad_query_MD[chunk] = (exponential_CI @ items_ID) * scale_C1 - weights_C1 * items_ID[target_C]
            grad_items_ID += exponential_CI.T @ (query_CD * scale_C1)
            grad_items_ID.index_add_(0, target_C, -weights_C1 * query_CD)
        ctx.save_for_backward(grad_query_MD, grad_items_ID)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_query_MD, grad_items_ID = ctx.saved_tensors
        return grad_query_MD * grad_outputs[0], grad_items_ID * grad_outputs[0], None, None, None


def full_softmax(query_MD: Tensor, table_RD: Tensor, target_rows_M: Tensor, weights_M: Tensor, max_logits: int | None = None) -> Tensor:
    """Weighted sum of -log softmax(query . table)[target] over every item; about `max_logits` logits are held at once.

    Without `max_logits`, as many as stay in a CPU's cache, or as keep a GPU busy. The gradients are computed with the loss (the
    idea of Liger's fused linear cross-entropy, Hsu et al., 2024).
    """
    items_ID = table_RD[FIRST_ITEM_ROW:]
    max_logits = max_logits or (CPU_LOGITS if items_ID.device.type == "cpu" else ACCELERATOR_LOGITS)
    chunk_size = max(FEWEST_POSITIONS, max_logits // len(items_ID))
    loss: Tensor = _FullSoftmax.apply(query_MD.to(items_ID.dtype), items_ID, target_rows_M - FIRST_ITEM_ROW, weights_M, chunk_size)
    return loss


def sampled_softmax(
    query_MD: Tensor, table_RD: Tensor, target_rows_M: Tensor, weights_M: Tensor, negative_rows_N: Tensor, sampler: Sampler
) -> Tensor:
    """Weighted sum of the sampled softmax with negatives shared by all positions.

    The target stands with its own logit: it is there with probability one. Each negative's logit is lowered by
    log(N q), its expected number of appearances, so that the sum over negatives estimates the softmax denominator without
    bias (Bengio and Senecal, 2008, "Adaptive importance sampling to accelerate training of a neural probabilistic language
    model"; for the target, Yi et al. are corrected as in Khrylchenko et al., 2025, "Correcting the logQ correction").
    A negative equal to a position's target is left out of that position's denominator.
    """
    num_negatives = len(negative_rows_N)
    target_logit_M = (query_MD * table_RD[target_rows_M]).sum(-1).float()
    correction_N = sampler.log_probability(negative_rows_N) + torch.log(torch.tensor(float(num_negatives)))
    negative_logit_MN = (query_MD @ table_RD[negative_rows_N].T).float() - correction_N
    negative_logit_MN = negative_logit_MN.masked_fill(negative_rows_N == target_rows_M[:, None], float("-inf"))
    denominator_M = torch.logsumexp(torch.cat([target_logit_M[:, None], negative_logit_MN], dim=1), dim=1)
    return ((denominator_M - target_logit_M) * weights_M).sum()
