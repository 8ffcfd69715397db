"""Ragged batches of windows of history, filled to a token budget from buckets of like length.

An epoch is a pure function of (dataset, split, configuration, epoch): the same batches after a restart, and
for any number of ranks that leaves each a window of every step.
Nothing loops over samples.

Shape legend: W windows, B windows of a batch, B1 = B + 1, E their events, T tokens of a batch, M target
positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from passerelle.arrays import Int64Array
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import MASK_ROW
from passerelle.ragged import gather_ragged
from passerelle.splits import Split
from training.config import Recipe
from training.data.draw_assignment import DrawAssignment, assign_draws
from training.data.objectives import masked_items, next_items, select_windows
from training.data.targets import make_targets, target_windows
from training.data.windows import groups_within_budget


@dataclass
class Batch:
    """One rank's share of a step."""

    items_T: Tensor
    """int64 item rows of all windows, concatenated; `MASK_ROW` where an item is masked."""
    offsets_B1: Tensor
    """int64 start of each window in `items_T`."""
    windows_B: Tensor
    """int64 number of each window among those of the step over all ranks."""
    user_rows_B: Tensor
    """int64 user row of each window."""
    event_types_T: Tensor
    """int64 event type of each token."""
    key_times_ms_T: Tensor
    """int64 time of the event of each token."""
    query_times_ms_T: Tensor
    """int64 time that each position predicts at: its own for masked items, else that of the next event."""
    target_positions_M: Tensor
    """int64 positions in `items_T` that targets are predicted from."""
    target_rows_M: Tensor
    """int64 item rows of the targets."""
    target_events_M: Tensor
    """int64 positions of the targets' events in the dataset."""
    weights_M: Tensor
    """float32 weight of each target (`make_targets`)."""
    draw_assignment: DrawAssignment
    """Which targets take which draw of negatives."""
    seed: int
    """Seed of negatives and dropout of the step; the same on every rank."""


def group_by_budget(
    lengths_W: Int64Array, token_budget: int, generator: np.random.Generator
) -> list[Int64Array]:
    """Shuffle windows into groups of like length within the budget (`groups_within_budget`), and the
    groups.
    """
    order_W = np.lexsort((generator.random(len(lengths_W)), lengths_W))[::-1]
    groups = groups_within_budget(order_W, lengths_W, token_budget)
    return [groups[position] for position in generator.permutation(len(groups))]


class EpochBatches:
    """The batches of one epoch for one rank; iterating twice gives the same batches.

    Each step's group of windows is the same for any `world_size` up to the windows of the smallest group;
    ranks take every `world_size`-th window of it, longest first, so that their costs are alike.
    A group with fewer windows than ranks is merged with its neighbour.
    A resumed epoch is told to start at another `first_step`, with the batches it would have had.

    Raises:
        UserError: the dataset has fewer windows than there are ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        config: Recipe,
        *,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._dataset = dataset
        self._objective = config.objective
        self._num_draws = 1 if config.loss.kind == "full" else config.loss.num_draws
        self._seed = (config.training.seed, epoch)
        self._rank, self._world_size = rank, world_size
        self.first_step = 0
        self._targets = make_targets(dataset, config.objective)
        self._windows = target_windows(split, config, self._targets)
        generator = np.random.default_rng([*self._seed, 0])
        groups: list[Int64Array] = []
        for group in group_by_budget(self._windows.lengths_W, config.batches.token_budget, generator):
            if groups and min(len(group), len(groups[-1])) < world_size:
                groups[-1] = np.concatenate([groups[-1], group])
            else:
                groups.append(group)
        if not groups or len(groups[0]) < world_size:
            windows = len(self._windows.start_W)
            remedy = (
                f"too few for --workers {world_size}"
                if windows
                else "prepare longer histories, or choose another split"
            )
            kind = (
                f" that end in {' or '.join(self._objective.event_types)}"
                if self._objective.event_types
                else ""
            )
            raise UserError(
                f"{dataset.path}: {windows} windows of two or more training events{kind}: {remedy}"
            )
        self._groups = groups

    def __len__(self) -> int:
        """Steps of the whole epoch, those before `first_step` included."""
        return len(self._groups)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, len(self._groups)):
            yield self._batch(self._groups[step], step)

    def _batch(self, group: Int64Array, step: int) -> Batch:
        generator = np.random.default_rng([*self._seed, 1, step])
        windows = self._windows.take(group)
        positions_E, offsets_B1 = windows.events()
        masked = self._objective.kind == "masked"
        predicted = masked_items(offsets_B1, self._objective, generator) if masked else next_items(offsets_B1)
        if self._targets.is_target_E is not None:
            predicted = predicted.only(self._targets.is_target_E[positions_E])
        longest_first = np.argsort(-windows.lengths_W, kind="stable")
        mine = np.arange(self._rank, len(longest_first), self._world_size)
        mine_B = longest_first[mine]
        targets_W = predicted.targets_per_window()[longest_first]
        end_W = np.cumsum(targets_W)
        numbers_M, _ = gather_ragged((end_W - targets_W)[mine], end_W[mine])
        predicted = select_windows(predicted, mine_B)
        dataset = self._dataset
        rows_E = dataset.item_rows_E[positions_E].astype(np.int64)
        times_ms_E = dataset.timestamps_ms_E[positions_E]
        target_events_M = positions_E[predicted.target_M]
        return Batch(
            items_T=torch.from_numpy(np.where(predicted.masked_T, MASK_ROW, rows_E[predicted.event_T])),
            offsets_B1=torch.from_numpy(predicted.offsets_B1),
            windows_B=torch.from_numpy(mine_B),
            user_rows_B=torch.from_numpy(dataset.user_rows_of(windows.start_W[mine_B])),
            event_types_T=torch.from_numpy(
                dataset.event_types_E[positions_E[predicted.event_T]].astype(np.int64)
            ),
            key_times_ms_T=torch.from_numpy(times_ms_E[predicted.event_T]),
            query_times_ms_T=torch.from_numpy(times_ms_E[predicted.time_event_T]),
            target_positions_M=torch.from_numpy(predicted.token_M),
            target_rows_M=torch.from_numpy(rows_E[predicted.target_M]),
            target_events_M=torch.from_numpy(target_events_M),
            weights_M=torch.from_numpy(self._targets.weights_E[target_events_M]),
            draw_assignment=assign_draws(numbers_M, self._num_draws),
            seed=int(generator.integers(2**62)),
        )
