"""Which items of a window are masked."""

import numpy as np
import pytest

from passerelle.dataset import Dataset
from passerelle.splits import Split
from tests.support.batches import windows_of
from tests.support.datasets import small_recipe
from training.config import Recipe
from training.data.batches import EpochBatches


def masks(
    dataset: Dataset, split: Split, config: Recipe, epochs: int = 1
) -> list[tuple[int, tuple[int, ...]]]:
    """(length, masked positions) of every window."""
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
