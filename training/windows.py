"""Stretches of training history, and gathering them from flat arrays.

Shape legend: W windows, B windows of a batch, B1 = B + 1, T their events one after the other, U users.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from passerelle.splits import Split

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Stretches of training history, `start_W : end_W` in the event arrays, none longer than the encoder sees."""

    start_W: Int64Array
    end_W: Int64Array

    @property
    def lengths_W(self) -> Int64Array:
        return self.end_W - self.start_W

    def take(self, selection: Int64Array) -> "Windows":
        """Some of the windows."""
        return Windows(self.start_W[selection], self.end_W[selection])


def training_windows(split: Split, max_length: int) -> Windows:
    """Cut every user's training events into windows from the newest event backwards; windows of one event are left out."""
    lengths_U = split.train_end_U - split.start_U
    pieces_U = -(-lengths_U // max_length)
    owner_W = np.repeat(np.arange(len(lengths_U)), pieces_U)
    piece_W = np.arange(len(owner_W)) - np.repeat(np.cumsum(pieces_U) - pieces_U, pieces_U)
    end_W = split.train_end_U[owner_W] - piece_W * max_length
    start_W = np.maximum(end_W - max_length, split.start_U[owner_W])
    long_enough_W = end_W - start_W >= 2
    return Windows(start_W[long_enough_W], end_W[long_enough_W])


def gather_ragged(windows: Windows) -> tuple[Int64Array, Int64Array]:
    """Event positions of all windows one after the other, and the B1 offsets between them."""
    lengths_B = windows.lengths_W
    offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)])
    positions_T = np.arange(offsets_B1[-1]) + np.repeat(windows.start_W - offsets_B1[:-1], lengths_B)
    return positions_T, offsets_B1
