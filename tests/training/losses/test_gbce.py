"""gBCE is its formula, and calibrated.

Shape legend: M positions, D width, R item rows, I items, S draws, N negatives, L a target and its negatives.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as given_values
from hypothesis import strategies as st
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.losses import NUM_ROWS, Problem, assert_same, gbce_of, gradients, negatives_of, problem
from training.data.draw_assignment import assign_draws
from training.losses.inputs import LossInputs
from training.losses.sampled import gbce, gbce_power
from training.losses.samplers import UniformSampler


def naive_gbce(
    given: Problem, draws: list[list[int]], calibration: float, temperature: float = 1.0
) -> Tensor:
    """As in the paper: the sigmoid of the target to the power beta.

    Positions take the draws in turn.
    """
    num_negatives = len(draws[0])
    alpha = num_negatives / (len(given.table_RD) - FIRST_ITEM_ROW)
    beta = alpha * ((1 - 1 / alpha) * calibration + 1 / alpha)
    total = torch.zeros((), dtype=given.table_RD.dtype)
    for position, (query_D, target, weight) in enumerate(
        zip(given.query_MD, given.target_rows_M.tolist(), given.weights_M, strict=True)
    ):
        of_position = torch.log(torch.sigmoid(query_D @ given.table_RD[target] / temperature) ** beta)
        for row in draws[position % len(draws)]:
            if row != target:
                of_position = of_position + torch.log(
                    1 - torch.sigmoid(query_D @ given.table_RD[row] / temperature)
                )
        total = total - weight * of_position / (num_negatives + 1)
    return total


@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("num_negatives", [1, 2, 39, 100])
@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("calibration", [0.0, 0.3, 1.0])
def test_gbce_equals_a_naive_implementation(
    positions: int, num_negatives: int, num_draws: int, calibration: float
) -> None:
    """In float64 exactly, in float32 as far as that goes."""
    given = problem(positions)
    rows_SN = torch.randint(
        FIRST_ITEM_ROW, NUM_ROWS, (num_draws, num_negatives), generator=torch.Generator().manual_seed(0)
    )
    rows_SN[0, 0] = given.target_rows_M[0]  # an accidental hit
    for one in (given, given.double()):
        for temperature in (1.0, 0.7):
            theirs = naive_gbce(one, rows_SN.tolist(), calibration, temperature)
            assert_same(gbce_of(one, negatives_of(rows_SN, positions), calibration, temperature), theirs, one)


def test_gbce_without_calibration_is_binary_cross_entropy() -> None:
    """That of torch; no negative here is a target."""
    given = problem(4)
    rows_N = torch.tensor(
        [row for row in range(FIRST_ITEM_ROW, NUM_ROWS) if row not in given.target_rows_M.tolist()][:10]
    )
    logits = given.query_MD @ given.table_RD.T
    logits_ML = torch.cat([logits.gather(1, given.target_rows_M[:, None]), logits[:, rows_N]], dim=1)
    labels_ML = torch.zeros_like(logits_ML)
    labels_ML[:, 0] = 1.0
    theirs = (
        F.binary_cross_entropy_with_logits(logits_ML, labels_ML, reduction="none").mean(1) * given.weights_M
    ).sum()
    assert_same(gbce_of(given, negatives_of(rows_N, 4), 0.0), theirs, given)


@given_values(st.integers(1, 1000), st.integers(2, 10**9), st.floats(0, 1))
def test_the_power_follows_the_paper(num_negatives: int, num_items: int, calibration: float) -> None:
    alpha = num_negatives / num_items  # the paper draws from all items but the target
    power = gbce_power(num_negatives, num_items, calibration)
    assert power == pytest.approx(alpha * ((1 - 1 / alpha) * calibration + 1 / alpha), rel=1e-6, abs=1e-12)
    assert gbce_power(num_negatives, num_items, 0.0) == 1.0
    assert gbce_power(num_negatives, num_items, 1.0) == pytest.approx(alpha, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("num_negatives", [1, 4])
def test_full_calibration_makes_probabilities_those_of_all_negatives(num_negatives: int) -> None:
    """The purpose of the calibration: the loss is least where sigmoids are the shares of items among targets.

    One query, five items of which one is the target in three of five cases.
    There, the gradient of each item's logit is only the noise of 64,000 positions with t = 1, and far from it
    with t = 0.
    """
    share_I = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04], dtype=torch.float64)
    table_RD = torch.zeros(7, 5, dtype=torch.float64)
    table_RD[FIRST_ITEM_ROW:] = torch.eye(5)
    generator, positions = torch.Generator().manual_seed(3), 64_000
    targets_M = torch.multinomial(share_I, positions, replacement=True, generator=generator) + FIRST_ITEM_ROW
    negatives = UniformSampler(7).draw(positions, num_negatives, targets_M, generator)
    assignment = assign_draws(np.arange(positions), positions)

    def t_statistics(calibration: float) -> Tensor:
        query_MD = torch.logit(share_I).repeat(positions, 1).requires_grad_()
        loss = gbce(
            LossInputs(query_MD, table_RD, targets_M, torch.ones(positions)),
            negatives,
            assignment,
            num_items=5,
            calibration=calibration,
        )
        (gradient_MI,) = torch.autograd.grad(loss, query_MD)
        return gradient_MI.mean(0).abs() / (gradient_MI.std(0) / positions**0.5)

    assert (t_statistics(1.0) < 4).all()
    assert (t_statistics(0.0) > 8).all()


@pytest.mark.parametrize("scale", [200.0, -200.0])
def test_gbce_of_large_logits_is_finite(scale: float) -> None:
    """Sigmoids of +-200 round to 0 and 1 in float32, and their logarithms would be infinite or lost.

    The loss is as in float64.
    """
    table_RD = torch.tensor([[0.0], [0.0], [1.0], [-1.0], [0.5]])
    given = Problem(
        torch.tensor([[scale]], requires_grad=True),
        table_RD.requires_grad_(),
        torch.tensor([2]),
        torch.ones(1),
    )
    negatives = negatives_of(torch.tensor([3, 4, 4]), 1)
    loss = gbce_of(given, negatives, 0.75)
    torch.testing.assert_close(loss.double(), gbce_of(given.double(), negatives, 0.75), rtol=1e-6, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(
        50.0 if scale > 0 else (200 * gbce_power(3, 3, 0.75) + 200) / 4
    )
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, given))


def test_gbce_of_one_item_has_no_negatives() -> None:
    """Every negative is a hit."""
    given = problem(2, num_rows=FIRST_ITEM_ROW + 1)
    loss = gbce_of(given, negatives_of(torch.full((3,), FIRST_ITEM_ROW), 2), 0.0)
    logits_M = given.query_MD @ given.table_RD[FIRST_ITEM_ROW]
    torch.testing.assert_close(loss, (F.softplus(-logits_M) * given.weights_M).sum() / 4)
