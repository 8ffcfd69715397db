"""Softmax over the whole catalogue, exact, in chunks.

It returns the weighted *sum* over positions, so that ranks with different numbers of positions add up to the
right mean.

Shape legend: M target positions, D width, R item rows (special rows included), I items, C positions of a
chunk.
"""

from typing import Any

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.losses.inputs import LossInputs

CPU_LOGITS, ACCELERATOR_LOGITS = 2**20, 2**26
MIN_CHUNK_POSITIONS = 64
"""Fewer positions, however large the catalogue, would read the whole table for hardly any work."""


class _FullSoftmax(torch.autograd.Function):
    """The loss and its gradients chunk by chunk, in one pass: no logits are held twice or computed twice."""

    @staticmethod
    def forward(
        ctx: Any, query_MD: Tensor, table_RD: Tensor, target_M: Tensor, weights_M: Tensor, chunk_size: int
    ) -> Tensor:
        grad_query_MD, grad_table_RD = torch.empty_like(query_MD), torch.zeros_like(table_RD)
        # sliced in here: outside, autograd would allocate a second gradient of the table
        items_ID, grad_items_ID = table_RD[FIRST_ITEM_ROW:], grad_table_RD[FIRST_ITEM_ROW:]
        loss = torch.zeros((), dtype=items_ID.dtype, device=items_ID.device)
        for start in range(0, len(query_MD), chunk_size):
            chunk = slice(start, start + chunk_size)
            query_CD, target_C = query_MD[chunk], target_M[chunk]
            weights_C1 = weights_M[chunk, None].to(items_ID.dtype)
            logits_CI = (query_CD @ items_ID.T).to(items_ID.dtype)
            target_logit_C1, largest_C1 = (
                logits_CI.gather(1, target_C[:, None]),
                logits_CI.amax(1, keepdim=True),
            )
            exponential_CI = logits_CI.sub_(largest_C1).exp_()
            total_C1 = exponential_CI.sum(1, keepdim=True)
            loss += ((total_C1.log() + largest_C1 - target_logit_C1) * weights_C1).sum()
            # applied to the narrow matrices: a pass over the logits costs more
            scale_C1 = weights_C1 / total_C1
            grad_query_MD[chunk] = (exponential_CI @ items_ID) * scale_C1 - weights_C1 * items_ID[target_C]
            grad_items_ID += exponential_CI.T @ (query_CD * scale_C1)
            grad_items_ID.index_add_(0, target_C, -weights_C1 * query_CD)
        ctx.save_for_backward(grad_query_MD, grad_table_RD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_query_MD, grad_table_RD = ctx.saved_tensors
        return grad_query_MD * grad_outputs[0], grad_table_RD * grad_outputs[0], None, None, None


def full_softmax(inputs: LossInputs, *, temperature: float = 1.0, max_logits: int | None = None) -> Tensor:
    """Returns the weighted sum of -log softmax(query . table / temperature)[target] over every item.

    About `max_logits` logits are held at once.
    Without it, as many as stay in a CPU's cache, or as keep a GPU busy.
    The gradients are computed with the loss (the idea of Liger's fused linear cross-entropy, Hsu et al.,
    2024).

    Args:
        temperature: > 0.
        max_logits: chunks have 64 positions at least, even if those have more logits.
    """
    table_RD = inputs.table_RD
    max_logits = max_logits or (CPU_LOGITS if table_RD.device.type == "cpu" else ACCELERATOR_LOGITS)
    chunk_size = max(MIN_CHUNK_POSITIONS, max_logits // (len(table_RD) - FIRST_ITEM_ROW))
    query_MD = inputs.query_MD.to(table_RD.dtype) / temperature
    loss: Tensor = _FullSoftmax.apply(
        query_MD, table_RD, inputs.target_rows_M - FIRST_ITEM_ROW, inputs.weights_M, chunk_size
    )
    return loss
