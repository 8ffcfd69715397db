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
    correct_target: bool = True,
) -> Tensor:
    """Weighted sum of the sampled softmax with shared negatives.

    Of a target and N negatives with log-probabilities log q, it is -log of the target's share of the denominator, in which a negative
    stands exp(logit) / (N q): an item is expected N q times, so that the sum over negatives estimates that over the catalogue without
    bias (Bengio and Senecal, 2008, "Adaptive importance sampling to accelerate training of a neural probabilistic language model").

    How much of the target stands there decides what few negatives teach. Once, for it is there with probability one (Khrylchenko et
    al., 2025, "Correcting the logQ correction"), is right when they are many, but the share of an estimated sum is biased by one
    over N. With 1 / (N q), as for every other item (the logQ correction of Yi et al., 2019), which of the N + 1 is the target is
    what is learnt, and the truth is the best answer for any N (Ma and Collins, 2018, "Noise contrastive estimation and negative
    sampling for conditional models: consistency and statistical efficiency") as long as negatives that are the target stay: left
    out, none of it remains when N is large. So, with `correct_target`, it stands there 1 + 1 / (N q) times, its own part and, in place
    of those negatives, as many as are expected: close to the truth for few and for many.

    A negative equal to a position's target is left out of that position's denominator; a position that all are left out of
    has no loss.

    Args:
        query_MD: one query for each target; logits are computed with in the dtype of the table.
        table_RD: item vectors, special rows included.
        target_rows_M: int64.
        weights_M: of each position; may be 0.
        negatives: their log-probabilities are used if there is a correction.
        temperature: > 0; logits are divided by it before they are corrected.
        correction: false leaves all logits as they are, and a loss biased against what is drawn often.
        correct_target: true lets the target stand 1 + 1 / (N q) times in the denominator, false once.
    """
    num_draws, num_negatives = negatives.rows_SN.shape
    target_logit_ST, negative_logit_STN, is_target_STN = _logits(query_MD, table_RD, target_rows_M, negatives, temperature)
    in_denominator_ST = target_logit_ST
    if correction:
        log_num_negatives = math.log(max(1, num_negatives))
        expected_times_SN = negatives.log_probability_SN + log_num_negatives
        negative_logit_STN = negative_logit_STN - expected_times_SN.to(table_RD.dtype)[:, None]
        if correct_target:
            more_M = torch.log1p(torch.exp(-(negatives.target_log_probability_M + log_num_negatives)))
            in_denominator_ST = target_logit_ST + _in_turn(more_M.to(table_RD.dtype), num_draws)
    negative_logit_STN = negative_logit_STN.masked_fill(is_target_STN, float("-inf"))
    denominator_ST = torch.logsumexp(torch.cat([in_denominator_ST[:, :, None], negative_logit_STN], dim=2), dim=2)
    return ((denominator_ST - in_denominator_ST) * _in_turn(weights_M, num_draws)).sum()


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
    num_draws, num_negatives = negatives.rows_SN.shape
    target_logit_ST, negative_logit_STN, is_target_STN = _logits(query_MD, table_RD, target_rows_M, negatives, temperature)
    power = gbce_power(num_negatives, num_items, calibration)
    negative_loss_ST = F.softplus(negative_logit_STN).masked_fill(is_target_STN, 0.0).sum(2)
    return ((power * F.softplus(-target_logit_ST) + negative_loss_ST) * _in_turn(weights_M, num_draws)).sum() / (num_negatives + 1)


def gbce_power(num_negatives: int, num_items: int, calibration: float) -> float:
    """beta = alpha ((1 - 1 / alpha) t + 1 / alpha), alpha = negatives over items that are not the target.

    Which is 1 + t (alpha - 1): from 1, plain binary cross entropy, to alpha, where the target weighs no more than each negative
    does in expectation and sigmoids are calibrated probabilities. Above 1 if there are more negatives than items.
    """
    alpha = num_negatives / max(1, num_items - 1)  # a catalogue of one item has no negatives: any power will do
    return 1.0 + calibration * (alpha - 1.0)


def _logits(
    query_MD: Tensor, table_RD: Tensor, target_rows_M: Tensor, negatives: Negatives, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """For each draw and the positions whose turn it is: logits of targets, [S, T], and of negatives, [S, T, N], and which of these
    are the target.

    In the dtype of the table, though a matrix product may round to less.
    """
    num_draws = len(negatives.rows_SN)
    query_STD, target_rows_ST = (_in_turn(values, num_draws) for values in (query_MD.to(table_RD.dtype) / temperature, target_rows_M))
    target_logit_ST = (query_STD * F.embedding(target_rows_ST, table_RD)).sum(-1)
    negative_logit_STN = query_STD @ F.embedding(negatives.rows_SN, table_RD).transpose(1, 2)
    is_target_STN = negatives.rows_SN[:, None] == target_rows_ST[:, :, None]
    return target_logit_ST, negative_logit_STN.to(table_RD.dtype), is_target_STN


def _in_turn(values: Tensor, num_draws: int) -> Tensor:
    """Of each draw and each position that takes it, [S, T, ...]; zeros fill the last turn."""
    padding = [0, 0] * (values.ndim - 1) + [0, -len(values) % num_draws]
    return F.pad(values, padding).unflatten(0, (-1, num_draws)).transpose(0, 1)
