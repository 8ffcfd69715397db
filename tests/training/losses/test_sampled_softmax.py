"""Sampled softmax estimates the full one, which it would not without its correction.

Shape legend: M positions, D width, R item rows, I items, N negatives, S times that they are drawn.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.losses import (
    ALL,
    COUNTS_R,
    NEGATIVES,
    NONE,
    NUM_ROWS,
    Correction,
    Problem,
    assert_same,
    full,
    gradients,
    negatives_of,
    problem,
    sampled,
    sampler_of,
)
from training.loss_config import InBatchSampling, SampledLoss
from training.losses.samplers import Negatives, Sampler, make_sampler

SAMPLERS = ["uniform", "log_uniform", "popularity", "flattened popularity", "streaming", "in batch", "mixed"]
POOL = 8


def naive_sampled(
    given: Problem, negatives: Negatives, temperature: float = 1.0, correction: Correction = ALL
) -> Tensor:
    """Written out: -log of the target's share of its sum with each other negative of its turn, which is
    divided by N q.
    """
    total = torch.zeros((), dtype=given.table_RD.dtype)
    num_negatives = negatives.rows_SN.shape[1]
    draws = list(zip(negatives.rows_SN.tolist(), negatives.log_probability_SN.tolist(), strict=True))
    for index, (query_D, target, weight) in enumerate(
        zip(given.query_MD, given.target_rows_M.tolist(), given.weights_M, strict=True)
    ):
        rows, log_probabilities = draws[index % len(draws)]
        times = 1.0
        if correction == ALL:
            expected_times = num_negatives * math.exp(negatives.target_log_probability_M[index])
            own = [False] * num_negatives
            if pool := negatives.pool_indices:
                own = (pool.negatives_SN[index % len(draws)] == pool.own_M[index]).tolist()
            times = (
                1 + sum(row == target and not mine for row, mine in zip(rows, own, strict=True))
            ) / expected_times
        of_target = denominator = times * torch.exp(query_D @ given.table_RD[target] / temperature)
        for row, log_probability in zip(rows, log_probabilities, strict=True):
            expected_times = num_negatives * math.exp(log_probability) if correction != NONE else 1.0
            if row != target:
                denominator = (
                    denominator + torch.exp(query_D @ given.table_RD[row] / temperature) / expected_times
                )
        total = total + weight * torch.log(denominator / of_target)
    return total


def drawn(
    sampler: Sampler,
    num_draws: int,
    num_negatives: int,
    target_rows_M: Tensor,
    generator: torch.Generator,
    pool: int = POOL,
) -> Negatives:
    """Negatives of these positions in a step of `pool` targets, the others as events have them."""
    others = torch.multinomial(COUNTS_R, pool - len(target_rows_M), replacement=True, generator=generator)
    negatives = sampler.draw(num_draws, num_negatives, torch.cat([target_rows_M, others]), generator)
    count = len(target_rows_M)
    kept = negatives.pool_indices and replace(
        negatives.pool_indices, own_M=negatives.pool_indices.own_M[:count]
    )
    return replace(
        negatives, target_log_probability_M=negatives.target_log_probability_M[:count], pool_indices=kept
    )


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("num_negatives", [1, 2, 30])
@pytest.mark.parametrize("num_draws", [1, 2, 7])
def test_sampled_softmax_equals_a_naive_implementation(
    name: str, positions: int, num_negatives: int, num_draws: int
) -> None:
    """Float32 and float64, corrected or not, at two temperatures; with fewer draws than positions and with
    more.
    """
    given = problem(positions)
    generator = torch.Generator().manual_seed(0)
    negatives = drawn(sampler_of(name), num_draws, num_negatives, given.target_rows_M, generator)
    rows_SN = negatives.rows_SN.clone()
    rows_SN[0, 0] = given.target_rows_M[0]  # an accidental hit
    negatives = replace(negatives, rows_SN=rows_SN)
    for one in (given, given.double()):
        for temperature in (1.0, 0.4):
            for correction in (ALL, NEGATIVES, NONE):
                ours, theirs = (
                    loss(one, negatives, temperature, correction) for loss in (sampled, naive_sampled)
                )
                assert_same(ours, theirs, one)


def test_accidental_hits_are_left_out() -> None:
    """With nothing but the target among the negatives there is nothing to tell it from: no loss, no
    gradient.
    """
    given = problem(1)
    loss = sampled(given, negatives_of(given.target_rows_M.repeat(4), 1))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(not gradient.any() for gradient in gradients(loss, given))
    assert float(sampled(given, negatives_of(given.target_rows_M - 1, 1)).detach()) > 0, (
        "the neighbour is no hit"
    )


def test_a_step_without_negatives_has_no_loss() -> None:
    """As that of a rank without targets, or of a single target in its own batch."""
    none = torch.empty(0, dtype=torch.int64)
    given = problem(2)
    assert float(sampled(given, negatives_of(none, 2)).detach()) == 0.0
    empty = Problem(given.query_MD[:0], given.table_RD, none, given.weights_M[:0])
    for loss in (
        sampled(empty, negatives_of(none, 0)),
        sampled(empty, negatives_of(torch.tensor([3]), 0)),
        full(empty),
    ):
        assert float(loss.detach()) == 0.0
        assert not gradients(loss, Problem(given.query_MD, given.table_RD, none, none))[1].any()


def test_a_negative_is_a_hit_for_its_own_position_only() -> None:
    given = problem(2)
    negatives, negatives_alone = (negatives_of(given.target_rows_M[:1], positions) for positions in (2, 1))
    alone = [
        Problem(
            given.query_MD[[index]], given.table_RD, given.target_rows_M[[index]], given.weights_M[[index]]
        )
        for index in (0, 1)
    ]
    assert float(sampled(alone[0], negatives_alone).detach()) == pytest.approx(0.0, abs=1e-6)
    expected = sampled(alone[1], negatives_alone)
    torch.testing.assert_close(sampled(given, negatives), expected)
    assert float(expected.detach()) > 0


def estimates(name: str, num_negatives: int, draws: int, correction: Correction) -> tuple[Tensor, Tensor]:
    """Errors of the estimated denominator of one position: [S], and of its gradient with respect to the
    table, [S, R, D].

    Where the target stands once, loss = log(denominator) - logit of the target.
    The loss itself is unbiased in the limit only, as the logarithm of an estimate; the denominator and its
    gradient are for any number of negatives.
    """
    given = problem(1, scale=0.3).double()
    given.weights_M = torch.ones(1, dtype=torch.float64)
    sampler, generator = sampler_of(name), torch.Generator().manual_seed(7)
    exact = torch.exp(given.query_MD[0] @ given.table_RD[FIRST_ITEM_ROW:].T).sum()
    exact_RD = gradients(exact, given)[1]
    values, gradients_RD = [], []
    for _ in range(draws):
        negatives = drawn(sampler, 1, num_negatives, given.target_rows_M, generator)
        target_logit = given.query_MD[0] @ given.table_RD[given.target_rows_M[0]]
        estimate = torch.exp(sampled(given, negatives, correction=correction) + target_logit)
        values.append((estimate - exact).detach())
        gradients_RD.append(gradients(estimate, given)[1] - exact_RD)
    return torch.stack(values), torch.stack(gradients_RD)


def deviations(errors_S: Tensor) -> Tensor:
    """Mean errors in standard errors of the mean; 0 where nothing varies and nothing is wrong."""
    mean, standard_error = errors_S.mean(0), errors_S.std(0) / len(errors_S) ** 0.5
    return torch.where(mean.abs() < 1e-9, 0.0, mean / standard_error)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("num_negatives", "draws"), [(3, 900), (20, 400)])
def test_the_denominator_and_its_gradient_are_unbiased(name: str, num_negatives: int, draws: int) -> None:
    """5 standard errors for the largest of 252 gradients; the rarest item is expected among the draws 10
    times at least.
    """
    values_S, gradients_SRD = estimates(name, num_negatives, draws, NEGATIVES)
    assert float(deviations(values_S).abs()) < 4
    assert float(deviations(gradients_SRD).abs().max()) < 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_the_correction_the_denominator_is_biased(name: str) -> None:
    values_S, gradients_SRD = estimates(name, 20, 400, NONE)
    assert float(deviations(values_S).abs()) > 10
    assert float(deviations(gradients_SRD).abs().max()) > 10


def test_a_streaming_frequency_corrects_in_batch_negatives() -> None:
    """After 400 steps of 8 targets, the denominator to a few percent.

    The position is none of the batch here, so that all 8 targets are draws.
    """
    given = problem(1, scale=0.3)
    given.weights_M = torch.ones(1)
    config = SampledLoss(sampler=InBatchSampling(streaming_rate=0.005))
    sampler, generator = (
        make_sampler(config, torch.zeros(NUM_ROWS, dtype=torch.float64)),
        torch.Generator().manual_seed(4),
    )
    ratios = []
    with torch.no_grad():
        exact = torch.exp(given.query_MD[0] @ given.table_RD[FIRST_ITEM_ROW:].T).sum()
        of_target = torch.exp(given.query_MD[0] @ given.table_RD[given.target_rows_M[0]])
        for step in range(1200):
            negatives = sampler.draw(
                1, POOL, torch.multinomial(COUNTS_R, POOL, replacement=True, generator=generator), generator
            )
            if step >= 400:
                negatives = replace(
                    negatives, log_probability_SN=negatives.log_probability_SN - math.log(1 - 1 / POOL)
                )
                ratios.append(torch.exp(sampled(given, negatives, correction=NEGATIVES)) * of_target / exact)
    assert float(torch.stack(ratios).mean()) == pytest.approx(1.0, abs=0.03)


def mean_gradient(
    given: Problem, name: str, num_negatives: int, draws: int, correction: Correction
) -> Tensor:
    """Mean over draws of the gradient of the table, [R, D]; in a batch as large as the number of
    negatives.
    """
    sampler, generator = sampler_of(name), torch.Generator().manual_seed(3)
    total_RD = torch.zeros_like(given.table_RD)
    for _ in range(draws):
        negatives = drawn(
            sampler,
            1,
            num_negatives,
            given.target_rows_M,
            generator,
            pool=len(given.target_rows_M) + num_negatives,
        )
        total_RD += gradients(sampled(given, negatives, correction=correction), given)[1]
    return total_RD / draws


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("correction", [ALL, NEGATIVES], ids=["all", "negatives"])
def test_the_gradient_of_the_loss_tends_to_the_exact_one(name: str, correction: Correction) -> None:
    """Its bias falls as one over the number of negatives; 1024 of a catalogue of 40 items leave next to
    nothing.
    """
    given = problem(8)
    exact_RD = gradients(full(given), given)[1]
    few, some, many = (
        relative_error(mean_gradient(given, name, count, draws, correction), exact_RD)
        for count, draws in ((4, 500), (32, 300), (1024, 100))
    )
    assert few > 1.5 * some > 2 * many
    assert many < 0.025


@pytest.mark.parametrize("name", ["log_uniform", "popularity", "in batch", "mixed"])
def test_without_the_correction_the_gradient_stays_wrong(name: str) -> None:
    given = problem(8)
    exact_RD = gradients(full(given), given)[1]
    assert relative_error(mean_gradient(given, name, 1024, 30, NONE), exact_RD) > 0.1


def test_several_draws_reduce_gradient_noise() -> None:
    """The mean is that of one draw for all; of 64 positions whose queries are alike, 16 draws leave a quarter
    of its deviation.
    """
    given = problem(64)
    with torch.no_grad():
        given.query_MD[:] = given.query_MD[:1] + 0.1 * given.query_MD
    sampler, generator = sampler_of("uniform"), torch.Generator().manual_seed(0)
    of_table: list[Tensor] = []
    for num_draws in (1, 16):
        steps = [sampler.draw(num_draws, 8, given.target_rows_M, generator) for _ in range(300)]
        of_table.append(torch.stack([gradients(sampled(given, negatives), given)[1] for negatives in steps]))
    alone_SRD, in_turn_SRD = of_table
    assert 0.2 < float(in_turn_SRD.std(0).norm() / alone_SRD.std(0).norm()) < 0.3
    differences = (alone_SRD.mean(0) - in_turn_SRD.mean(0)) / (
        (alone_SRD.var(0) + in_turn_SRD.var(0)) / 300
    ).sqrt().clamp_min(1e-9)
    assert float(differences.abs().max()) < 5
