"""Small problems for losses, and what every test of a loss compares.

Shape legend: M positions, D width, R item rows, I items, S draws, N negatives of each.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.samplers import make
from training.data.draw_assignment import DrawAssignment, assign_draws
from training.losses.full_softmax import full_softmax
from training.losses.inputs import LossInputs
from training.losses.sampled import gbce, sampled_softmax
from training.losses.samplers import Negatives, Sampler

NUM_ROWS, DIM = 42, 6
NUM_ITEMS = NUM_ROWS - FIRST_ITEM_ROW
COUNTS_R = torch.cat(
    [
        torch.zeros(2),
        torch.floor(40 * torch.rand(NUM_ITEMS, generator=torch.Generator().manual_seed(1)) ** 2) + 3,
    ]
).double()


@dataclass
class Problem:
    """Some positions with their targets, over a small catalogue."""

    query_MD: Tensor
    table_RD: Tensor
    target_rows_M: Tensor
    weights_M: Tensor

    def inputs(self) -> LossInputs:
        return LossInputs(self.query_MD, self.table_RD, self.target_rows_M, self.weights_M)

    def double(self) -> "Problem":
        query_MD, table_RD = (
            tensor.detach().double().requires_grad_() for tensor in (self.query_MD, self.table_RD)
        )
        return Problem(query_MD, table_RD, self.target_rows_M, self.weights_M.double())


def problem(positions: int, seed: int = 0, num_rows: int = NUM_ROWS, scale: float = 1.0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    return Problem(
        (scale * torch.randn(positions, DIM, generator=generator)).requires_grad_(),
        torch.randn(num_rows, DIM, generator=generator, requires_grad=True),
        torch.randint(FIRST_ITEM_ROW, num_rows, (positions,), generator=generator),
        torch.rand(positions, generator=generator) + 0.5,
    )


def full(given: Problem, max_logits: int = 3 * NUM_ITEMS, temperature: float = 1.0) -> Tensor:
    return full_softmax(given.inputs(), temperature=temperature, max_logits=max_logits)


def gbce_of(given: Problem, negatives: Negatives, calibration: float, temperature: float = 1.0) -> Tensor:
    return gbce(
        given.inputs(),
        negatives,
        assignment_of(given, negatives),
        num_items=len(given.table_RD) - FIRST_ITEM_ROW,
        calibration=calibration,
        temperature=temperature,
    )


def gradients(loss: Tensor, given: Problem) -> tuple[Tensor, Tensor]:
    query_MD, table_RD = torch.autograd.grad(loss, (given.query_MD, given.table_RD))
    return query_MD, table_RD


def assert_same(ours: Tensor, theirs: Tensor, given: Problem) -> None:
    """Compares losses and gradients."""
    tight = ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, atol=1e-12 if tight else 1e-4, rtol=1e-12 if tight else 1e-5)
    for one, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12 if tight else 1e-5, rtol=1e-10 if tight else 1e-5)


def negatives_of(rows: Tensor, positions: int, probability: float = 1 / NUM_ITEMS) -> Negatives:
    """Returns one draw, or several, for so many positions.

    Each row and each target has the same probability.
    """
    rows_SN = rows if rows.ndim == 2 else rows[None]
    log_probability = torch.tensor(math.log(probability), dtype=torch.float64)
    return Negatives(rows_SN, log_probability.expand(rows_SN.shape), log_probability.expand(positions))


def sampler_of(name: str) -> Sampler:
    """Returns a sampler that has counted `COUNTS_R`."""
    return make(name, COUNTS_R[FIRST_ITEM_ROW:].long().tolist())


def assignment_of(given: Problem, negatives: Negatives) -> DrawAssignment:
    """Returns the assignment of a step that has these positions and no others."""
    return assign_draws(np.arange(len(given.query_MD)), len(negatives.rows_SN))


@dataclass(frozen=True)
class Correction:
    """Which logits are corrected."""

    correction: bool = True
    correct_target: bool = True


ALL, NEGATIVES, NONE = Correction(), Correction(correct_target=False), Correction(correction=False)


def sampled(
    given: Problem, negatives: Negatives, temperature: float = 1.0, correction: Correction = ALL
) -> Tensor:
    return sampled_softmax(
        given.inputs(),
        negatives,
        assignment_of(given, negatives),
        temperature=temperature,
        **asdict(correction),
    )
