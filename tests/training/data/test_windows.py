"""Windows of training history, and how they are grouped into steps.

Shape legend: U users, W windows, T events of the windows.
"""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.dataset import Dataset
from passerelle.splits import Split, SplitConfig, make_split
from tests.support.batches import events_of, numbered, slow_windows, windows_of
from tests.support.datasets import small_recipe
from training.data.batches import EpochBatches, group_by_budget
from training.data.windows import training_windows

RULES = [SplitConfig(), SplitConfig(rule="global_time", validation_fraction=0.2, test_fraction=0.2)]


@given(
    trained_and_held_out=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=12),
    max_length=st.integers(2, 9),
)
def test_windows_equal_a_naive_implementation(
    trained_and_held_out: list[tuple[int, int]], max_length: int
) -> None:
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
def test_windows_hold_each_training_event_once_and_no_held_out_event(
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
def test_groups_partition_all_windows(lengths: list[int], token_budget: int, seed: int) -> None:
    lengths_W = np.array(lengths)
    groups = group_by_budget(lengths_W, token_budget, np.random.default_rng(seed))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(len(group) * lengths_W[group].max() <= token_budget or len(group) == 1 for group in groups)
