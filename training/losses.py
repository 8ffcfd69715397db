"""Losses over shared negatives: sampled softmax with the logQ correction, and gBCE.

Each returns the weighted *sum* over positions, so that ranks with different numbers of positions add up to the right mean.

Shape legend: M target positions, D width, R item rows (special rows included), N negatives.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.samplers import Negatives


def sampled_softmax(
    query_MD: Tensor,
    table_RD: Tensor,
    target_rows_M: Tensor,
    weights_M: Tensor,
    negatives: Negatives,
    *,
    temperature: float = 1.0,
    correction: bool = True,
) -> Tensor:
    """Weighted sum of the sampled softmax with negatives shared by all positions.

    The target stands with its own logit: it is there with probability one. Each negative's logit is lowered by
    log(N q), its expected number of appearances, so that the sum over negatives estimates the softmax denominator without
    bias (Bengio and Senecal, 2008, "Adaptive importance sampling to accelerate training of a neural probabilistic language
    model"; for the target, Yi et al. are corrected as in Khrylchenko et al., 2025, "Correcting the logQ correction").
    A negative equal to a position's target is left out of that position's denominator; a position that all are left out of
    has no loss.

    Args:
        query_MD: one query for each target; logits are computed with in the dtype of the table.
        table_RD: item vectors, special rows included.
        target_rows_M: int64.
        weights_M: of each position; may be 0.
        negatives: their log-probabilities are used if `correction` is true.
        temperature: > 0; logits are divided by it before they are corrected.
        correction: false leaves the logits of negatives as they are, and a loss biased against what is drawn often.
    """
    target_logit_M, negative_logit_MN = _logits(query_MD, table_RD, target_rows_M, negatives.rows_N, temperature)
    if correction:
        expected_times_N = negatives.log_probability_N + math.log(max(1, len(negatives)))
        negative_logit_MN = negative_logit_MN - expected_times_N.to(table_RD.dtype)
    negative_logit_MN = negative_logit_MN.masked_fill(negatives.rows_N == target_rows_M[:, None], float("-inf"))
    denominator_M = torch.logsumexp(torch.cat([target_logit_M[:, None], negative_logit_MN], dim=1), dim=1)
    return ((denominator_M - target_logit_M) * weights_M).sum()


def gbce(
    query_MD: Tensor,
    table_RD: Tensor,
    target_rows_M: Tensor,
    weights_M: Tensor,
    negatives: Negatives,
    *,
    calibration: float,
    temperature: float = 1.0,
) -> Tensor:
    """Weighted sum of generalised binary cross entropy, with uniform negatives shared by all positions.

    Petrov and Macdonald, 2023, "gSASRec: Reducing overconfidence in sequential recommendation trained with negative sampling":
    (-beta log sigmoid(target) - sum of log(1 - sigmoid(negative))) / (N + 1). With -log sigmoid(x) = softplus(-x) and
    -log(1 - sigmoid(x)) = softplus(x), no probability is ever computed that could round to 0 or 1, and the power is a product.

    A negative equal to a position's target is left out of that position's sum.

    Args:
        calibration: t in [0, 1]: see `gbce_power`.
        temperature: > 0; logits are divided by it.
        query_MD, table_RD, target_rows_M, weights_M, negatives: as for `sampled_softmax`; log-probabilities are not used.
    """
    num_items = len(table_RD) - FIRST_ITEM_ROW
    target_logit_M, negative_logit_MN = _logits(query_MD, table_RD, target_rows_M, negatives.rows_N, temperature)
    power = gbce_power(len(negatives), num_items, calibration)
    hits_MN = negatives.rows_N == target_rows_M[:, None]
    negative_loss_M = F.softplus(negative_logit_MN).masked_fill(hits_MN, 0.0).sum(1)
    return ((power * F.softplus(-target_logit_M) + negative_loss_M) * weights_M).sum() / (len(negatives) + 1)


def gbce_power(num_negatives: int, num_items: int, calibration: float) -> float:
    """beta = alpha ((1 - 1 / alpha) t + 1 / alpha), alpha = negatives over items that are not the target.

    Which is 1 + t (alpha - 1): from 1, plain binary cross entropy, to alpha, where the target weighs no more than each negative
    does in expectation and sigmoids are calibrated probabilities. Above 1 if there are more negatives than items.
    """
    alpha = num_negatives / max(1, num_items - 1)  # a catalogue of one item has no negatives: any power will do
    return 1.0 + calibration * (alpha - 1.0)


def _logits(
    query_MD: Tensor, table_RD: Tensor, target_rows_M: Tensor, negative_rows_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Of the target, [M], and of each negative, [M, N]; in the dtype of the table, though a matrix product may round to less."""
    query_MD = query_MD.to(table_RD.dtype) / temperature
    return (query_MD * table_RD[target_rows_M]).sum(-1), (query_MD @ table_RD[negative_rows_N].T).to(table_RD.dtype)
