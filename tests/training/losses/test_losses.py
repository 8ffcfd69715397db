"""What holds for every loss.

Shape legend: M positions, D width, R item rows, I items, N negatives.
"""

import math

import pytest
import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.losses import NUM_ITEMS, Problem, full, gbce_of, negatives_of, problem, sampled
from training.losses.sampled import gbce_power
from training.losses.samplers import Negatives

BEYOND_FLOAT32 = 2**24 + 1
"""The first integer that float32 does not have."""


def loss_of(kind: str, given: Problem, negatives: Negatives) -> Tensor:
    if kind == "full":
        return full(given, 2 * NUM_ITEMS)
    return sampled(given, negatives) if kind == "sampled" else gbce_of(given, negatives, 0.75)


@pytest.mark.parametrize("kind", ["full", "sampled", "gbce"])
def test_positions_count_by_their_weights(kind: str) -> None:
    """A position of weight 2 counts as two of weight 1, one of weight 0 not at all."""
    given = problem(3)
    of_negatives, of_targets = (
        torch.tensor(values, dtype=torch.float64).log() for values in ([[0.1, 0.3, 0.02]], [0.2, 0.05, 0.4])
    )

    def loss(weights: list[float], positions: list[int]) -> float:
        negatives = Negatives(torch.tensor([[5, 9, 30]]), of_negatives, of_targets[positions])
        part = Problem(
            given.query_MD[positions], given.table_RD, given.target_rows_M[positions], torch.tensor(weights)
        )
        return float(loss_of(kind, part, negatives).detach())

    assert loss([2.0, 0.0, 1.0], [0, 1, 2]) == pytest.approx(loss([1.0, 1.0, 1.0], [0, 0, 2]), rel=1e-5)
    assert loss([4.0, 0.0, 1.0], [0, 1, 2]) != pytest.approx(loss([2.0, 0.0, 1.0], [0, 1, 2]), rel=1e-2)


@pytest.mark.parametrize("kind", ["full", "sampled", "gbce"])
def test_rows_beyond_float32_are_told_apart(kind: str) -> None:
    """Two neighbours that are one number in float32: the target and a negative, which is no hit."""
    first, second = BEYOND_FLOAT32 - 1, BEYOND_FLOAT32
    table_RD = torch.zeros(second + 2, 1)
    table_RD[first], table_RD[second] = 2.0, -1.0
    given = Problem(torch.ones(1, 1), table_RD, torch.tensor([first]), torch.ones(1))
    negatives = negatives_of(torch.tensor([second, first]), 1, 0.5)
    num_items = second + 2 - FIRST_ITEM_ROW
    expected = {
        "full": math.log(math.exp(2) + math.exp(-1) + num_items - 2) - 2,
        "sampled": math.log1p(math.exp(-3) / 2),  # the target twice: its own part, and 1 / (2 * 0.5)
        "gbce": (gbce_power(2, num_items, 0.75) * math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 3,
    }
    assert float(loss_of(kind, given, negatives)) == pytest.approx(expected[kind], rel=1e-5)
