"""Losses over shared negatives: sampled softmax with the logQ correction, and gBCE.

Each returns the weighted *sum* over positions, so that ranks with different numbers of positions add up to the right mean.

Shape legend: M target positions, D width, R item rows (special rows included), S draws, N negatives of each, T turns: as many
positions as take the same draw.
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
    """Weighted sum of the sampled softmax with shared negatives.

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
    target_logit_ST, negative_logit_STN, is_target_STN, weights_ST = _in_turn(
        query_MD, table_RD, target_rows_M, weights_M, negatives, temperature
    )
    if correction:
        expected_times_SN = negatives.log_probability_SN + math.log(max(1, negatives.rows_SN.shape[1]))
        negative_logit_STN = negative_logit_STN - expected_times_SN.to(table_RD.dtype)[:, None]
    negative_logit_STN = negative_logit_STN.masked_fill(is_target_STN, float("-inf"))
    denominator_ST = torch.logsumexp(torch.cat([target_logit_ST[:, :, None], negative_logit_STN], dim=2), dim=2)
    return ((denominator_ST - target_logit_ST) * weights_ST).sum()


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
    """Weighted sum of generalised binary cross entropy, with shared uniform negatives.

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
    num_negatives = negatives.rows_SN.shape[1]
    target_logit_ST, negative_logit_STN, is_target_STN, weights_ST = _in_turn(
        query_MD, table_RD, target_rows_M, weights_M, negatives, temperature
    )
    power = gbce_power(num_negatives, num_items, calibration)
    negative_loss_ST = F.softplus(negative_logit_STN).masked_fill(is_target_STN, 0.0).sum(2)
    return ((power * F.softplus(-target_logit_ST) + negative_loss_ST) * weights_ST).sum() / (num_negatives + 1)


def gbce_power(num_negatives: int, num_items: int, calibration: float) -> float:
    """beta = alpha ((1 - 1 / alpha) t + 1 / alpha), alpha = negatives over items that are not the target.

    Which is 1 + t (alpha - 1): from 1, plain binary cross entropy, to alpha, where the target weighs no more than each negative
    does in expectation and sigmoids are calibrated probabilities. Above 1 if there are more negatives than items.
    """
    alpha = num_negatives / max(1, num_items - 1)  # a catalogue of one item has no negatives: any power will do
    return 1.0 + calibration * (alpha - 1.0)


def _in_turn(
    query_MD: Tensor, table_RD: Tensor, target_rows_M: Tensor, weights_M: Tensor, negatives: Negatives, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each draw and the positions whose turn it is: logits of targets and of negatives, which negatives are the target, weights.

    Positions are filled up to whole turns with such as weigh nothing. Logits are in the dtype of the table, though a matrix product
    may round to less.
    """
    num_draws = len(negatives.rows_SN)

    def in_turn(values: Tensor) -> Tensor:
        padding = [0, 0] * (values.ndim - 1) + [0, -len(values) % num_draws]
        return F.pad(values, padding).unflatten(0, (-1, num_draws)).transpose(0, 1)

    query_STD, target_rows_ST = in_turn(query_MD.to(table_RD.dtype) / temperature), in_turn(target_rows_M)
    target_logit_ST = (query_STD * F.embedding(target_rows_ST, table_RD)).sum(-1)
    negative_STN = query_STD @ F.embedding(negatives.rows_SN, table_RD).transpose(1, 2)
    is_target_STN = negatives.rows_SN[:, None] == target_rows_ST[:, :, None]
    return target_logit_ST, negative_STN.to(table_RD.dtype), is_target_STN, in_turn(weights_M)
