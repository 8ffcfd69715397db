"""Ragged batches of masked windows, filled to a token budget from buckets of like length.

An epoch is a pure function of (dataset, split, configuration, epoch): the same batches for any number of ranks, and
after a restart. Nothing loops over samples.

Shape legend: E events, W windows, B windows of a batch, B1 = B + 1, T tokens of a batch, M masked (target) positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import MASK_ROW
from passerelle.splits import Split
from training.config import RunConfig

Int64Array = npt.NDArray[np.int64]


@dataclass
class Batch:
    """One rank's share of a step."""

    items_T: Tensor
    """int64 item rows of all windows, one after the other, `MASK_ROW` where an item is to be predicted."""
    offsets_B1: Tensor
    """int64 start of each window in `items_T`."""
    targets_M: Tensor
    """int64 positions in `items_T` to predict."""
    target_rows_M: Tensor
    """int64 item rows that stood there."""
    weights_M: Tensor
    """float32 weight of each target's event."""
    seed: int
    """Seeds what the step draws beside the batch (negatives, dropout); the same on every rank."""


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


def group_by_budget(lengths_W: Int64Array, token_budget: int, generator: np.random.Generator) -> list[Int64Array]:
    """Shuffle windows into groups of like length whose padded size (count x longest) stays within the budget.

    A window longer than the budget is a group of its own.
    """
    order_W = np.lexsort((generator.random(len(lengths_W)), lengths_W))[::-1]
    sorted_W = lengths_W[order_W]
    groups, start = [], 0
    while start < len(order_W):
        size = max(1, token_budget // int(sorted_W[start]))
        groups.append(order_W[start : start + size])
        start += size
    return [groups[position] for position in generator.permutation(len(groups))]


class EpochBatches:
    """The batches of one epoch for one rank; iterating twice gives the same batches.

    Each step's group of windows is the same for any `world_size`; ranks take every `world_size`-th window of it, longest
    first, so that their costs are alike. A group with fewer windows than ranks is merged with its neighbour.

    Raises:
        UserError: the dataset has fewer windows than there are ranks.
    """

    def __init__(self, dataset: Dataset, split: Split, config: RunConfig, *, epoch: int, rank: int = 0, world_size: int = 1) -> None:
        self._dataset = dataset
        self._objective = config.objective
        self._seed = (config.training.seed, epoch)
        self._rank, self._world_size = rank, world_size
        self._windows = training_windows(split, config.model.max_history + 1)
        generator = np.random.default_rng([*self._seed, 0])
        groups: list[Int64Array] = []
        for group in group_by_budget(self._windows.lengths_W, config.batches.token_budget, generator):
            if groups and min(len(group), len(groups[-1])) < world_size:
                groups[-1] = np.concatenate([groups[-1], group])
            else:
                groups.append(group)
        if not groups or len(groups[0]) < world_size:
            raise UserError(
                f"{dataset.path}: {len(self._windows.start_W)} windows of two or more training events, too few for --workers {world_size}"
            )
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Batch]:
        for step, group in enumerate(self._groups):
            yield self._batch(group, step)

    def _batch(self, group: Int64Array, step: int) -> Batch:
        generator = np.random.default_rng([*self._seed, 1, step])
        windows = self._windows.take(group)
        positions_T, offsets_B1 = gather_ragged(windows)
        masked_T = self._mask(offsets_B1, generator)
        if self._world_size > 1:
            mine_B = np.argsort(-windows.lengths_W, kind="stable")[self._rank :: self._world_size]
            kept_T, offsets_B1 = gather_ragged(Windows(offsets_B1[mine_B], offsets_B1[mine_B + 1]))
            positions_T, masked_T = positions_T[kept_T], masked_T[kept_T]
        rows_T = self._dataset.item_rows_E[positions_T].astype(np.int64)
        targets_M = np.flatnonzero(masked_T)
        return Batch(
            items_T=torch.from_numpy(np.where(masked_T, MASK_ROW, rows_T)),
            offsets_B1=torch.from_numpy(offsets_B1),
            targets_M=torch.from_numpy(targets_M),
            target_rows_M=torch.from_numpy(rows_T[targets_M]),
            weights_M=torch.from_numpy(self._dataset.weights_E[positions_T[targets_M]]),
            seed=int(generator.integers(2**62)),
        )

    def _mask(self, offsets_B1: Int64Array, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Cloze masks; a window where chance masks nothing, or that is drawn to, has its last item alone masked."""
        lengths_B = np.diff(offsets_B1)
        masked_T = generator.random(offsets_B1[-1]) < self._objective.mask_probability
        last_only_B = generator.random(len(lengths_B)) < self._objective.last_only_probability
        last_only_B |= np.add.reduceat(masked_T, offsets_B1[:-1]) == 0
        masked_T &= ~np.repeat(last_only_B, lengths_B)
        masked_T[offsets_B1[1:][last_only_B] - 1] = True
        return masked_T
