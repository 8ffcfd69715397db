"""Which events a run trains on, and windows of them.

Shape legend: W windows, T training events one after the other, U users, U1 = U + 1.
"""

from dataclasses import dataclass, replace

import numpy as np

from passerelle.arrays import Int64Array
from passerelle.ragged import gather_ragged
from passerelle.splits import Split
from training.config import Recipe


@dataclass(frozen=True)
class Windows:
    """Slices of training histories, `start_W : end_W` in the event arrays, none longer than the encoder
    sees.
    """

    start_W: Int64Array
    end_W: Int64Array

    @property
    def lengths_W(self) -> Int64Array:
        return self.end_W - self.start_W

    def take(self, selection: Int64Array) -> "Windows":
        """Returns some of the windows."""
        return Windows(self.start_W[selection], self.end_W[selection])

    def events(self) -> tuple[Int64Array, Int64Array]:
        """Returns the positions of the windows' events, concatenated, and the W + 1 offsets between
        windows.
        """
        return gather_ragged(self.start_W, self.end_W)


def training_split(split: Split, config: Recipe) -> Split:
    """Returns the split of a run's recipe, with validation events in training where the recipe asks for
    them.
    """
    return with_validation(split) if config.training.include_validation else split


def with_validation(split: Split) -> Split:
    """Returns the same split with validation events in training."""
    return replace(split, train_end_U=split.validation_end_U)


def training_events(split: Split) -> tuple[Int64Array, Int64Array]:
    """Returns the positions [T] of all training events by user, oldest first, and the U1 offsets between
    users.
    """
    return gather_ragged(split.start_U, split.train_end_U)


def training_windows(split: Split, max_length: int) -> Windows:
    """Cuts the training events of every user into windows, from the newest event backwards.

    Windows of one event are left out.
    """
    lengths_U = split.train_end_U - split.start_U
    pieces_U = -(-lengths_U // max_length)
    owner_W = np.repeat(np.arange(len(lengths_U)), pieces_U)
    piece_W = np.arange(len(owner_W)) - np.repeat(np.cumsum(pieces_U) - pieces_U, pieces_U)
    end_W = split.train_end_U[owner_W] - piece_W * max_length
    start_W = np.maximum(end_W - max_length, split.start_U[owner_W])
    long_enough_W = end_W - start_W >= 2
    return Windows(start_W[long_enough_W], end_W[long_enough_W])


def groups_within_budget(
    order_W: Int64Array, lengths_W: Int64Array, token_budget: int, max_windows: int | None = None
) -> list[Int64Array]:
    """Cuts windows, longest first, into groups whose padded size (count x longest) stays within the budget.

    A window longer than the budget is a group of its own.

    Args:
        order_W: positions in `lengths_W`, some or all.
        max_windows: windows of a group, at most (> 0).
    """
    groups, start = [], 0
    while start < len(order_W):
        size = max(1, token_budget // int(lengths_W[order_W[start]]))
        groups.append(order_W[start : start + (size if max_windows is None else min(size, max_windows))])
        start += len(groups[-1])
    return groups
