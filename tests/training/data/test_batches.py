"""Training batches: their contents, and how ranks share them.

Shape legend: U users, M targets.
"""

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from passerelle.arrays import Float32Array
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import Split
from tests.support.batches import events_of, numbered, windows_of
from tests.support.datasets import small_recipe
from training.data.batches import Batch, EpochBatches


def same(ours: Batch, theirs: Batch) -> bool:
    return ours.seed == theirs.seed and all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("items_T", "offsets_B1", "target_positions_M", "target_rows_M", "weights_M")
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_steps_of_one_process(dataset: Dataset, split: Split, world_size: int) -> None:
    """Union of the ranks' windows, masks included, is the batch that one process would see."""
    config, events = small_recipe(), numbered(dataset)
    alone = list(EpochBatches(events, split, config, epoch=3))
    ranks = [
        list(EpochBatches(events, split, config, epoch=3, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [len(batches) for batches in ranks] == [len(alone)] * world_size
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert Counter(windows_of(whole)) == Counter(window for part in parts for window in windows_of(part))
        assert {part.seed for part in parts} == {whole.seed}
        tokens = [len(part.items_T) for part in parts]
        assert max(tokens) - min(tokens) <= np.diff(whole.offsets_B1).max(), (
            "ranks wait for the one with the most tokens"
        )


@pytest.mark.parametrize("token_budget", [1, 20, 30])
def test_every_rank_has_windows_at_each_step(dataset: Dataset, split: Split, token_budget: int) -> None:
    """Also where the budget holds fewer windows than there are ranks, and whatever the order of the
    groups.
    """
    config, events = small_recipe(f"batches.token_budget={token_budget}"), numbered(dataset)
    for epoch in range(5):
        ranks = [
            EpochBatches(events, split, config, epoch=epoch, rank=rank, world_size=3) for rank in range(3)
        ]
        for parts in zip(*ranks, strict=True):
            lengths = [np.diff(part.offsets_B1).tolist() for part in parts]
            assert all(lengths)
            longest_first = sorted(chain.from_iterable(lengths), reverse=True)
            assert lengths == [longest_first[rank::3] for rank in range(3)], "costs are alike"
        shared = [event for batches in ranks for event in events_of(batches)]
        assert sorted(shared) == sorted(events_of(EpochBatches(events, split, config, epoch=epoch)))


def few_windows(dataset: Dataset, split: Split, count: int) -> Split:
    """The first `count` users keep their training events, the others have none."""
    train_end_U = np.where(np.arange(dataset.num_users) < count, split.train_end_U, split.start_U)
    return replace(split, train_end_U=train_end_U)


def test_a_first_group_of_one_window_is_merged(dataset: Dataset, split: Split) -> None:
    config = small_recipe("batches.token_budget=22", "model.max_history=20")
    for epoch in range(20):
        ranks = [
            EpochBatches(
                dataset, few_windows(dataset, split, 5), config, epoch=epoch, rank=rank, world_size=2
            )
            for rank in range(2)
        ]
        assert sum(len(batch.offsets_B1) - 1 for batches in ranks for batch in batches) == 5
        assert all(len(batch.offsets_B1) > 1 for batches in ranks for batch in batches)


@pytest.mark.parametrize(("windows", "world_size"), [(0, 1), (1, 2), (2, 3)])
def test_fewer_windows_than_ranks_is_refused(
    dataset: Dataset, split: Split, windows: int, world_size: int
) -> None:
    mend = f"too few for --workers {world_size}" if windows else "prepare longer histories"
    with pytest.raises(UserError, match=f"{windows} windows of two or more training events: {mend}"):
        EpochBatches(
            dataset,
            few_windows(dataset, split, windows),
            small_recipe("model.max_history=20"),
            epoch=0,
            world_size=world_size,
        )


def test_an_epoch_is_the_same_after_a_restart(dataset: Dataset, split: Split) -> None:
    batches = EpochBatches(dataset, split, small_recipe(), epoch=2)
    again = EpochBatches(dataset, split, small_recipe("training.max_epochs=7"), epoch=2)
    assert len(batches) == len(list(batches)) == len(again)
    for first, second, recreated in zip(batches, batches, again, strict=True):
        assert same(first, second)
        assert same(first, recreated)


@pytest.mark.parametrize(("epoch", "seed"), [(1, 0), (0, 1)])
def test_epochs_and_seeds_differ(dataset: Dataset, split: Split, epoch: int, seed: int) -> None:
    """In the windows that share a step, in the masks, and in what the step draws beside."""
    events = numbered(dataset)
    ours = list(EpochBatches(events, split, small_recipe(), epoch=0))
    theirs = list(EpochBatches(events, split, small_recipe(f"training.seed={seed}"), epoch=epoch))

    def steps(batches: list[Batch]) -> set[frozenset[tuple[int, ...]]]:
        return {frozenset(rows for rows, _ in windows_of(batch)) for batch in batches}

    def masked_positions(batches: list[Batch]) -> dict[tuple[int, ...], tuple[int, ...]]:
        return dict(window for batch in batches for window in windows_of(batch))

    assert not steps(ours) & steps(theirs)
    ours_masked, theirs_masked = masked_positions(ours), masked_positions(theirs)
    assert ours_masked.keys() == theirs_masked.keys()
    assert np.mean([ours_masked[rows] == theirs_masked[rows] for rows in ours_masked]) < 0.3
    assert not {batch.seed for batch in ours} & {batch.seed for batch in theirs}


@pytest.mark.parametrize("world_size", [1, 2])
def test_targets_have_the_weights_of_their_events(dataset: Dataset, split: Split, world_size: int) -> None:
    weights = []
    for batch in EpochBatches(numbered(dataset), split, small_recipe(), epoch=0, world_size=world_size):
        weights_M: Float32Array = dataset.weights_E[batch.target_rows_M.numpy() - FIRST_ITEM_ROW]
        assert batch.weights_M.numpy().tolist() == weights_M.tolist()
        weights += weights_M.tolist()
    assert set(weights) == {1.0, 2.5}


def test_rows_beyond_float32_are_exact(dataset: Dataset, split: Split) -> None:
    """Two neighbouring rows above 2^24 are one float32: every odd one would come out even."""
    first = 2**24 + 1
    rows = [
        row
        for batch in EpochBatches(numbered(dataset, first), split, small_recipe(), epoch=0)
        for row in batch.target_rows_M.tolist()
    ]
    expected = events_of(EpochBatches(numbered(dataset), split, small_recipe(), epoch=0))
    assert {row % 2 for row in rows} == {0, 1}
    assert set(rows) <= {first + event for event in expected}
    items = [
        row - first
        for batch in EpochBatches(numbered(dataset, first), split, small_recipe(), epoch=0)
        for row in batch.items_T.tolist()
    ]
    assert sorted(item for item in [*items, *(row - first for row in rows)] if item >= 0) == sorted(expected)
