"""Training batches: what is in them, how they are shared, and that nothing held out is.

Shape legend: E events, U users, W windows, T tokens, M targets, B1 windows of a batch + 1.
"""

from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import pytorch_lightning as pl
from hypothesis import given
from hypothesis import strategies as st

from passerelle.arrays import Float32Array
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW, MASK_ROW
from passerelle.splits import Split, SplitConfig, make_split
from tests.support.datasets import small_recipe
from training.config import Recipe
from training.data.batches import Batch, EpochBatches, group_by_budget
from training.data.loaders import EpochLoader
from training.data.windows import training_windows

Window = tuple[tuple[int, ...], tuple[int, ...]]
"""Item rows of a window, and which places are masked."""

RULES = [SplitConfig(), SplitConfig(rule="global_time", validation_fraction=0.2, test_fraction=0.2)]


def numbered(dataset: Dataset, first: int = FIRST_ITEM_ROW) -> Dataset:
    """The dataset with a different item in each event, `first` onwards, so that a batch tells which events it
    holds.
    """
    return replace(dataset, item_rows_E=first + np.arange(len(dataset.item_rows_E), dtype=np.int32))


def windows_of(batch: Batch) -> list[Window]:
    """The windows of a batch with the masked items put back."""
    items_T, masked_T = batch.items_T.numpy().copy(), np.zeros(len(batch.items_T), dtype=bool)
    masked_T[batch.target_positions_M.numpy()] = True
    assert (items_T[masked_T] == MASK_ROW).all()
    assert (items_T[~masked_T] >= FIRST_ITEM_ROW).all()
    items_T[masked_T] = batch.target_rows_M.numpy()
    bounds = pairwise(batch.offsets_B1.tolist())
    return [
        (tuple(items_T[start:end].tolist()), tuple(np.flatnonzero(masked_T[start:end]).tolist()))
        for start, end in bounds
    ]


def events_of(batches: EpochBatches) -> list[int]:
    """Events of a `numbered` dataset, as often as they occur."""
    return [row - FIRST_ITEM_ROW for batch in batches for rows, _ in windows_of(batch) for row in rows]


def same(ours: Batch, theirs: Batch) -> bool:
    return ours.seed == theirs.seed and all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("items_T", "offsets_B1", "target_positions_M", "target_rows_M", "weights_M")
    )


def slow_windows(start: int, end: int, max_length: int) -> list[list[int]]:
    """Take events from the newest on; a window that would hold a single event is not worth having."""
    windows, events = [], list(range(start, end))
    while events:
        windows.append(events[-max_length:])
        events = events[:-max_length]
    return [window for window in windows if len(window) > 1]


@given(
    trained_and_held_out=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=12),
    max_length=st.integers(2, 9),
)
def test_windows_equal_the_slow_ones(trained_and_held_out: list[tuple[int, int]], max_length: int) -> None:
    trained_U, held_out_U = np.array(trained_and_held_out).T
    end_U = np.cumsum(trained_U + held_out_U)
    start_U = end_U - trained_U - held_out_U
    windows = training_windows(Split(start_U, start_U + trained_U, end_U, end_U), max_length)
    fast = [list(range(start, end)) for start, end in zip(windows.start_W, windows.end_W, strict=True)]
    slow = [
        window
        for start, trained in zip(start_U, trained_U, strict=True)
        for window in slow_windows(start, start + trained, max_length)
    ]
    assert fast == slow
    positions_T, offsets_W1 = windows.events()
    assert positions_T.tolist() == list(chain.from_iterable(slow))
    assert offsets_W1.tolist() == [0, *np.cumsum([len(window) for window in slow], dtype=int)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
@pytest.mark.parametrize("max_history", [2, 4, 12])
def test_each_training_event_is_in_one_window_and_nothing_held_out_in_any(
    dataset: Dataset, rule: SplitConfig, max_history: int
) -> None:
    """All but a user's oldest event where it would stand alone in its window; so all events of other users
    are there.
    """
    split = make_split(dataset, rule)
    expected = [
        event
        for start, end in zip(split.start_U, split.train_end_U, strict=True)
        for window in slow_windows(start, end, max_history + 1)
        for event in window
    ]
    trained_U = split.train_end_U - split.start_U
    left_alone_U = trained_U % (max_history + 1) == 1
    assert len(expected) == trained_U.sum() - left_alone_U.sum()
    assert len(expected) < len(dataset.item_rows_E), "nothing is held out: the test would pass in vain"
    batches = EpochBatches(
        numbered(dataset), split, small_recipe(f"model.max_history={max_history}"), epoch=0
    )
    assert sorted(events_of(batches)) == sorted(expected)


def test_windows_keep_the_order_of_events(dataset: Dataset, split: Split) -> None:
    windows = [
        rows
        for batch in EpochBatches(numbered(dataset), split, small_recipe(), epoch=0)
        for rows, _ in windows_of(batch)
    ]
    assert all(rows == tuple(range(rows[0], rows[0] + len(rows))) for rows in windows)


@pytest.mark.parametrize("token_budget", [5, 60, 512])
def test_padded_size_stays_within_the_budget(dataset: Dataset, split: Split, token_budget: int) -> None:
    batches = list(
        EpochBatches(dataset, split, small_recipe(f"batches.token_budget={token_budget}"), epoch=0)
    )
    for batch in batches:
        lengths_B = np.diff(batch.offsets_B1)
        assert len(lengths_B) * lengths_B.max() <= token_budget or len(lengths_B) == 1
    tokens = sum(len(batch.items_T) for batch in batches)
    padded = sum((len(batch.offsets_B1) - 1) * int(np.diff(batch.offsets_B1).max()) for batch in batches)
    assert tokens > 0.9 * padded, "windows of unlike lengths share batches"


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=60),
    token_budget=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_groups_share_out_all_windows(lengths: list[int], token_budget: int, seed: int) -> None:
    lengths_W = np.array(lengths)
    groups = group_by_budget(lengths_W, token_budget, np.random.default_rng(seed))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(len(group) * lengths_W[group].max() <= token_budget or len(group) == 1 for group in groups)


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
def test_every_rank_has_something_to_do_at_each_step(
    dataset: Dataset, split: Split, token_budget: int
) -> None:
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


def test_a_lone_first_window_is_not_a_step_of_its_own(dataset: Dataset, split: Split) -> None:
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


def masks(
    dataset: Dataset, split: Split, config: Recipe, epochs: int = 1
) -> list[tuple[int, tuple[int, ...]]]:
    """(length, masked places) of every window."""
    batches = [
        batch for epoch in range(epochs) for batch in EpochBatches(dataset, split, config, epoch=epoch)
    ]
    return [(len(rows), masked) for batch in batches for rows, masked in windows_of(batch)]


def test_each_window_has_a_target(dataset: Dataset, split: Split) -> None:
    found = masks(
        dataset, split, small_recipe("objective.mask_probability=0.01", "objective.last_only_probability=0")
    )
    assert all(masked for _, masked in found)
    assert np.mean([masked == (length - 1,) for length, masked in found]) > 0.8, (
        "where chance masks nothing, the last item is masked"
    )


def test_masks_follow_their_probabilities(dataset: Dataset, split: Split) -> None:
    found = masks(
        dataset,
        split,
        small_recipe("objective.mask_probability=0.5", "objective.last_only_probability=0"),
        epochs=10,
    )
    longest = [(length, masked) for length, masked in found if length == 13]
    share = sum(len(masked) for _, masked in longest) / sum(length for length, _ in longest)
    assert share == pytest.approx(0.5, abs=0.02)
    everything = masks(
        dataset, split, small_recipe("objective.mask_probability=1", "objective.last_only_probability=0")
    )
    assert all(masked == tuple(range(length)) for length, masked in everything)
    last_only = masks(
        dataset,
        split,
        small_recipe("objective.mask_probability=1", "objective.last_only_probability=0.25"),
        epochs=10,
    )
    assert np.mean([masked == (length - 1,) for length, masked in last_only]) == pytest.approx(0.25, abs=0.03)


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

    def masked_places(batches: list[Batch]) -> dict[tuple[int, ...], tuple[int, ...]]:
        return dict(window for batch in batches for window in windows_of(batch))

    assert not steps(ours) & steps(theirs)
    ours_masked, theirs_masked = masked_places(ours), masked_places(theirs)
    assert ours_masked.keys() == theirs_masked.keys()
    assert np.mean([ours_masked[rows] == theirs_masked[rows] for rows in ours_masked]) < 0.3
    assert not {batch.seed for batch in ours} & {batch.seed for batch in theirs}


@pytest.mark.parametrize("world_size", [1, 2])
def test_targets_weigh_what_their_events_weigh(dataset: Dataset, split: Split, world_size: int) -> None:
    weights = []
    for batch in EpochBatches(numbered(dataset), split, small_recipe(), epoch=0, world_size=world_size):
        weights_M: Float32Array = dataset.weights_E[batch.target_rows_M.numpy() - FIRST_ITEM_ROW]
        assert batch.weights_M.numpy().tolist() == weights_M.tolist()
        weights += weights_M.tolist()
    assert set(weights) == {1.0, 2.5}


def test_rows_beyond_float32_survive(dataset: Dataset, split: Split) -> None:
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


def test_an_epoch_is_not_continued_with_other_batches(dataset: Dataset, split: Split) -> None:
    """Steps of two windows are merged for three workers, and their numbers mean others."""
    config = small_recipe("batches.token_budget=26")
    trainer = cast(pl.Trainer, SimpleNamespace(current_epoch=1))
    alone, shared = (
        EpochLoader(EpochBatches(dataset, split, config, epoch=1, world_size=size), trainer)
        for size in (1, 3)
    )
    assert len(shared) < len(alone)
    begun = {"epoch": 1, "steps": 5, "steps_per_epoch": len(alone)}
    alone.load_state_dict(begun)
    assert len(list(alone)) == len(alone) - 5
    with pytest.raises(
        UserError,
        match=f"epoch 2 was begun with {len(alone)} steps and has {len(shared)} with this number of workers",
    ):
        shared.load_state_dict(begun)
    shared.load_state_dict({**begun, "epoch": 0})
    assert len(list(shared)) == len(shared)
