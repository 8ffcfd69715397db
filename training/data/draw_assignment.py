"""Which positions of a step take which of its draws of negatives.

Shape legend: M target positions of this rank, S draws that some of them take, T positions of the draw that most take.
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
    """The first position of a step takes the first draw, the one after the last draw the first again.

    Neighbours take different draws because those of one history ask for like items: the same negatives would push them all the same
    way. Positions are counted over the whole step, so that each takes the same draw for any number of ranks.

    Args:
        numbers_M: number of each position of this rank among those of the step.
    """
    draw_M = numbers_M % num_draws
    order_M = np.argsort(draw_M, kind="stable")
    draws_S, start_S, length_S = np.unique(draw_M[order_M], return_index=True, return_counts=True)
    place_T = np.arange(length_S.max(initial=0))
    there_ST = place_T < length_S[:, None]
    positions_ST = np.full(there_ST.shape, len(numbers_M))
    positions_ST[there_ST] = order_M[(start_S[:, None] + place_T)[there_ST]]
    return DrawAssignment(torch.from_numpy(draws_S), torch.from_numpy(positions_ST))


def one_turn(num_positions: int, device: torch.device) -> DrawAssignment:
    """All positions take the first draw."""
    return DrawAssignment(
        torch.zeros(1, dtype=torch.int64, device=device), torch.arange(num_positions, device=device)[None]
    )
