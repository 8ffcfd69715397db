"""Softmax losses over the catalogue: exact in chunks, or over shared negatives with the logQ correction.

Both return the weighted *sum* over positions, so that ranks with different numbers of positions add up to the right mean.

Shape legend: M target positions, D width, R item rows (special rows included), N negatives, C chunk of positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from passerelle.ids import FIRST_ITEM_ROW
from training.samplers import Sampler


def full_softmax(query_MD: Tensor, table_RD: Tensor, target_rows_M: Tensor, weights_M: Tensor, chunk_size: int) -> Tensor:
    """Weighted sum of -log softmax(query . table)[target] over every item.

    Logits live for one chunk of positions only: backward computes them again.
    """
    items_ID = table_RD[FIRST_ITEM_ROW:]

    def chunk_loss(query_CD: Tensor, target_C: Tensor, weights_C: Tensor) -> Tensor:
        losses_C = F.cross_entropy((query_CD @ items_ID.T).float(), target_C, reduction="none")
        return (losses_C * weights_C).sum()

    chunks = zip(query_MD.split(chunk_size), (target_rows_M - FIRST_ITEM_ROW).split(chunk_size), weights_M.split(chunk_size), strict=True)
    if len(query_MD) <= chunk_size:
        return chunk_loss(*next(chunks))
    return torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()


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
