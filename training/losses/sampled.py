"""Losses over shared negatives: sampled softmax with the logQ correction, and gBCE.

Each returns the weighted *sum* over positions, so that ranks with different numbers of positions add up to
the right mean.

Shape legend: M target positions, D width, R item rows (special rows included), S draws, N negatives of each,
T positions that take the same draw, padded with positions of weight zero.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.draw_assignment import DrawAssignment, single_draw
from training.losses.inputs import LossInputs
from training.losses.samplers import Negatives


def sampled_softmax(
    inputs: LossInputs,
    negatives: Negatives,
    assignment: DrawAssignment,
    *,
    temperature: float = 1.0,
    correction: bool = True,
    correct_target: bool = True,
) -> Tensor:
    """Returns the weighted sum of the sampled softmax with shared negatives.

    With the logits s of a target y and of N negatives j, drawn with probabilities q, the loss of a position
    is

        logsumexp(t, {s_j - log(N q_j) : j != y}) - t,

        t = s_y + log((1 + K) / (N q_y))   with `correct_target`
        t = s_y                            without

    where K is the number of its negatives that are y, apart from one that it contributed itself as a target
    of the step.
    Negatives that are y take no other part, and a position without any other negative has no gradient.
    Each other item is expected N q times among the negatives, so their sum estimates that over the catalogue
    without bias (Bengio and Senecal, 2008, "Adaptive importance sampling to accelerate training of a neural
    probabilistic language model").

    How often the target stands among them decides what few negatives teach.
    Once, because it is there with probability one (Khrylchenko et al., 2025, "Correcting the logQ
    correction"), leaves the logarithm of the estimate with a bias in the order of 1 / N.
    With `correct_target` it stands there as every other item would.
    Which of the N + 1 is the target is then what is learnt, and the best answer to that is the probability of
    each item up to a factor, for any N (Ma and Collins, 2018, "Noise contrastive estimation and negative
    sampling for conditional models: consistency and statistical efficiency").
    K = 0 would be the logQ correction of Yi et al., 2019, which has no right limit for many negatives once
    those that are the target are left out.
    Corrected, with the target or without, the loss tends to the full softmax as N grows.

    Args:
        negatives: their log-probabilities are used if there is a correction.
        assignment: which position takes which draw of them, if there is more than one.
        temperature: > 0; logits are divided by it before they are corrected.
        correction: false leaves all logits as they are, and a loss biased against what is drawn often.
        correct_target: true lets the target stand (1 + K) / (N q) times in the denominator, false once.
    """
    dtype = inputs.table_RD.dtype
    logits = _logits(inputs, negatives, assignment, temperature)
    negative_STN, target_ST = logits.negative_STN, logits.target_ST
    if correction:
        log_num_negatives = math.log(max(1, negatives.rows_SN.shape[1]))
        expected_times_SN = (negatives.log_probability_SN + log_num_negatives)[logits.assignment.draws_S]
        negative_STN = negative_STN - expected_times_SN.to(dtype)[:, None]
        if correct_target:
            expected_times_ST = _by_draw(
                negatives.target_log_probability_M + log_num_negatives, logits.assignment
            )
            hits_STN = logits.is_target_STN
            if pool := negatives.pool_indices:
                own_ST = _by_draw(pool.own_M, logits.assignment)
                drawn_SN = pool.negatives_SN[logits.assignment.draws_S]
                hits_STN = hits_STN & (drawn_SN[:, None] != own_ST[:, :, None])
            log_times_ST = torch.log1p(hits_STN.sum(2, dtype=torch.float64)) - expected_times_ST
            target_ST = target_ST + log_times_ST.to(dtype)
    negative_STN = negative_STN.masked_fill(logits.is_target_STN, float("-inf"))
    denominator_ST = torch.logsumexp(torch.cat([target_ST[:, :, None], negative_STN], dim=2), dim=2)
    return ((denominator_ST - target_ST) * logits.weights_ST).sum()


def gbce(
    inputs: LossInputs,
    negatives: Negatives,
    assignment: DrawAssignment,
    *,
    num_items: int,
    calibration: float,
    temperature: float = 1.0,
) -> Tensor:
    """Returns the weighted sum of generalised binary cross entropy, with shared uniform negatives.

    Petrov and Macdonald, 2023, "gSASRec: Reducing overconfidence in sequential recommendation trained with
    negative sampling": (-beta log sigmoid(target) - sum of log(1 - sigmoid(negative))) / (N + 1).
    With -log sigmoid(x) = softplus(-x) and -log(1 - sigmoid(x)) = softplus(x), no probability is ever
    computed that could round to 0 or 1, and the power is a product.

    A negative equal to a position's target is left out of that position's sum.

    Args:
        negatives: their log-probabilities are not used.
        assignment: which position takes which draw of them, if there is more than one.
        num_items: items of the catalogue; the table may hold only those of the step.
        calibration: t in [0, 1]: see `gbce_power`.
        temperature: > 0; logits are divided by it.
    """
    num_negatives = negatives.rows_SN.shape[1]
    logits = _logits(inputs, negatives, assignment, temperature)
    power = gbce_power(num_negatives, num_items, calibration)
    negative_loss_ST = F.softplus(logits.negative_STN).masked_fill(logits.is_target_STN, 0.0).sum(2)
    loss_ST = (power * F.softplus(-logits.target_ST) + negative_loss_ST) * logits.weights_ST
    return loss_ST.sum() / (num_negatives + 1)


def gbce_power(num_negatives: int, num_items: int, calibration: float) -> float:
    """Returns beta = alpha ((1 - 1 / alpha) t + 1 / alpha), alpha being how often an item is expected to be
    drawn.

    That equals 1 + t (alpha - 1): from 1, plain binary cross entropy, to alpha, where the target weighs no
    more than each negative does in expectation and sigmoids are calibrated probabilities.
    It is above 1 if there are more negatives than items.
    The paper draws from the other items alone, and has one item less to divide by.
    """
    alpha = num_negatives / num_items
    return 1.0 + calibration * (alpha - 1.0)


@dataclass(frozen=True)
class _Logits:
    """Logits of targets and negatives, grouped by draw."""

    target_ST: Tensor
    negative_STN: Tensor
    is_target_STN: Tensor
    """Which negatives are the target of the position."""
    weights_ST: Tensor
    assignment: DrawAssignment


def _logits(
    inputs: LossInputs, negatives: Negatives, assignment: DrawAssignment, temperature: float
) -> _Logits:
    """Returns logits in the dtype of the table, though a matrix product may round to less."""
    table_RD = inputs.table_RD
    if len(negatives.rows_SN) == 1:
        assignment = single_draw(len(inputs.query_MD), inputs.query_MD.device)
    rows_SN = negatives.rows_SN[assignment.draws_S]
    query_STD = _by_draw(inputs.query_MD.to(table_RD.dtype) / temperature, assignment)
    target_rows_ST = _by_draw(inputs.target_rows_M, assignment)
    both = [rows_SN.shape[1], target_rows_ST.shape[1]]
    # looked up together, so that the table gets one gradient
    vectors = F.embedding(torch.cat([rows_SN, target_rows_ST], 1), table_RD)
    negatives_SND, targets_STD = vectors.split(both, 1)
    return _Logits(
        target_ST=(query_STD * targets_STD).sum(-1),
        negative_STN=(query_STD @ negatives_SND.transpose(1, 2)).to(table_RD.dtype),
        is_target_STN=rows_SN[:, None] == target_rows_ST[:, :, None],
        weights_ST=_by_draw(inputs.weights_M, assignment),
        assignment=assignment,
    )


def _by_draw(values: Tensor, assignment: DrawAssignment) -> Tensor:
    """Returns [S, T, ...] of values [M, ...]; zero where a draw has no more positions."""
    with_none = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
    positions_ST = assignment.positions_ST
    return with_none.index_select(0, positions_ST.flatten()).unflatten(0, positions_ST.shape)
