"""What few negatives teach is the truth: where logits are the logarithms of what targets are drawn from, no
gradient is left.

Shape legend: M positions, R item rows, I items.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.losses import (
    ALL,
    NEGATIVES,
    NUM_ITEMS,
    NUM_ROWS,
    Correction,
    Problem,
    gradients,
    sampled,
    sampler_of,
)
from training.losses.samplers import CountedFrequency, InBatchSampler, MixedSampler, Negatives, Sampler


def truth_logits() -> Tensor:
    """float64 [R] logarithms, up to a constant, of how often each of 40 items is asked for, one of them half
    of the time.
    """
    logits_R = torch.full((NUM_ROWS,), -30.0, dtype=torch.float64)
    logits_R[FIRST_ITEM_ROW:] = torch.randn(
        NUM_ITEMS, generator=torch.Generator().manual_seed(0)
    ).log_softmax(0)
    logits_R[FIRST_ITEM_ROW] = 0.0
    return logits_R


@pytest.mark.parametrize("name", ["uniform", "log_uniform", "popularity", "flattened popularity"])
@pytest.mark.parametrize("num_negatives", [1, 3, 40])
def test_sampled_softmax_learns_true_probabilities_for_any_number_of_negatives(
    name: str, num_negatives: int
) -> None:
    """Where logits are the logarithms of what targets are drawn from, there is nothing left to learn: no
    gradient but noise.

    Of 40 items, one of which is asked for half of the time; where the target stands once, few negatives leave
    a gradient.
    """
    generator, positions = torch.Generator().manual_seed(0), 40_000
    logits_R = truth_logits().float()
    targets_M = torch.multinomial(logits_R.exp(), positions, replacement=True, generator=generator)
    sampler, table_RD = sampler_of(name), torch.eye(NUM_ROWS).requires_grad_()
    means, squares = {ALL: torch.zeros(NUM_ROWS), NEGATIVES: torch.zeros(NUM_ROWS)}, torch.zeros(NUM_ROWS)
    for some_M in targets_M.split(4_000):
        given = Problem(
            logits_R.expand(len(some_M), -1).clone().requires_grad_(),
            table_RD,
            some_M,
            torch.ones(len(some_M)),
        )
        negatives = sampler.draw(len(some_M), num_negatives, some_M, generator)
        for correction in means:
            gradients_MR = gradients(sampled(given, negatives, correction=correction), given)[0]
            means[correction] += gradients_MR.sum(0) / positions
            squares += (gradients_MR**2).sum(0) / positions * (correction == ALL)
    standard_errors_R = (squares / positions).sqrt()[FIRST_ITEM_ROW:]
    deviations_R = {
        correction: (mean_R[FIRST_ITEM_ROW:] / standard_errors_R).abs().max()
        for correction, mean_R in means.items()
    }
    assert float(deviations_R[ALL]) < 4.5
    if num_negatives < 10:
        assert float(deviations_R[NEGATIVES]) > 20


def truth_and_gradient(
    sampler: Sampler,
    spoil: Callable[[Negatives, Tensor], Negatives] | None = None,
    correction: Correction = ALL,
) -> tuple[Tensor, Tensor]:
    """Mean gradient [I] of the logits at the truth over 1,500 steps of 16 positions, and its standard errors.

    The truth is that of the test above; the steps' positions have draws of their own, of 8 negatives, and
    targets of each other.
    """
    generator, steps, logits_R = torch.Generator().manual_seed(0), 1_500, truth_logits()
    table_RD, of_steps = (
        torch.eye(NUM_ROWS, dtype=torch.float64).requires_grad_(),
        torch.zeros(steps, NUM_ITEMS, dtype=torch.float64),
    )
    for step in range(steps):
        targets_M = torch.multinomial(logits_R.exp(), 16, replacement=True, generator=generator)
        given = Problem(
            logits_R.expand(16, -1).clone().requires_grad_(),
            table_RD,
            targets_M,
            torch.ones(16, dtype=torch.float64),
        )
        negatives = sampler.draw(16, 8, targets_M, generator)
        loss = sampled(
            given, negatives if spoil is None else spoil(negatives, targets_M), correction=correction
        )
        of_steps[step] = gradients(loss, given)[0].mean(0)[FIRST_ITEM_ROW:]
    return of_steps.mean(0), of_steps.std(0) / steps**0.5


def test_in_batch_negatives_of_a_small_step_learn_true_probabilities() -> None:
    """Corrected as what they are, though the position's own is among them; with the target once they do
    not.
    """
    sampler = InBatchSampler(CountedFrequency(truth_logits().exp()), gather=False)
    mean_I, error_I = truth_and_gradient(sampler)
    assert float((mean_I / error_I).abs().max()) < 4.5
    mean_I, error_I = truth_and_gradient(sampler, correction=NEGATIVES)
    assert float((mean_I / error_I).abs().max()) > 8


def test_mixed_negatives_of_a_small_step_learn_nearly_true_probabilities() -> None:
    """Nearer to it than if the own target counted among those of the step, which makes rare ones seem
    likely.
    """

    def with_own(negatives: Negatives, targets_M: Tensor) -> Negatives:
        times_M = (targets_M[:, None] == targets_M).sum(1)
        probability_M = 0.5 * times_M / 16 + 0.5 / NUM_ITEMS
        return replace(negatives, target_log_probability_M=probability_M.double().log(), pool_indices=None)

    sampler = MixedSampler(NUM_ROWS, 0.5, gather=False)
    without, mistaken = (truth_and_gradient(sampler, spoil)[0] for spoil in (None, with_own))
    assert float(without.norm()) < 0.015
    assert float(mistaken.norm()) > 1.8 * float(without.norm())
