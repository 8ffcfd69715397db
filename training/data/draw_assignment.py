"""Which positions of a step take which of its draws of negatives.

Shape legend: M target positions of this rank, S draws that some of them take, T positions of the draw with
most of them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from passerelle.arrays import Int64Array


@dataclass
class DrawAssignment:
    """For each draw, the positions of this rank that take it."""

    draws_S: Tensor
    """int64 numbers of the draws, ascending; those that no position takes are left out."""
    positions_ST: Tensor
    """int64 positions, ascending in each draw; M where a draw has fewer than another."""


def assign_draws(numbers_M: Int64Array, num_draws: int) -> DrawAssignment:
    """Assigns draws round robin: after the last draw, the next position of a step takes the first again.

    Neighbours take different draws because the positions of one history have similar targets: with the same
    negatives, their gradients would all point the same way.
    Positions are counted over the whole step, so that each takes the same draw for any number of ranks.

    Args:
        numbers_M: number of each position of this rank among those of the step.
    """
    draw_M = numbers_M % num_draws
    order_M = np.argsort(draw_M, kind="stable")
    draws_S, start_S, length_S = np.unique(draw_M[order_M], return_index=True, return_counts=True)
    column_T = np.arange(length_S.max(initial=0))
    is_filled_ST = column_T < length_S[:, None]
    positions_ST = np.full(is_filled_ST.shape, len(numbers_M))
    positions_ST[is_filled_ST] = order_M[(start_S[:, None] + column_T)[is_filled_ST]]
    return DrawAssignment(torch.from_numpy(draws_S), torch.from_numpy(positions_ST))


def single_draw(num_positions: int, device: torch.device) -> DrawAssignment:
    """Returns the assignment of all positions to the first draw."""
    return DrawAssignment(
        torch.zeros(1, dtype=torch.int64, device=device), torch.arange(num_positions, device=device)[None]
    )
