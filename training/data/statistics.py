"""Counts of items over the events that training may see.

Shape legend: E events, T training events, B1 windows + 1, R item rows (special rows included).
"""

from dataclasses import dataclass

import numpy as np

from passerelle.arrays import Float64Array, Int64Array
from passerelle.calendar_time import DAY_MS
from passerelle.dataset import Dataset
from passerelle.splits import Split
from training.config import Recipe
from training.data.objectives import expected_targets
from training.data.targets import make_targets, target_windows
from training.data.windows import training_events


@dataclass(frozen=True)
class ItemStatistics:
    """Weighted counts of events of each item."""

    counts_R: Float64Array
    """Sum of weights of its training events."""
    recent_counts_R: Float64Array
    """The same over the last days of training."""


def item_statistics(dataset: Dataset, split: Split, recent_days: int) -> ItemStatistics:
    """Returns counts over training events; those of validation and test are left out."""
    positions_T, _ = training_events(split)
    rows_T, weights_T = dataset.item_rows_E[positions_T], dataset.weights_E[positions_T]
    times_ms_T = dataset.timestamps_ms_E[positions_T]
    recent_T = times_ms_T > times_ms_T.max() - recent_days * DAY_MS
    return ItemStatistics(
        counts_R=np.bincount(rows_T, weights=weights_T, minlength=dataset.num_rows).astype(np.float64),
        recent_counts_R=np.bincount(
            rows_T[recent_T], weights=weights_T[recent_T], minlength=dataset.num_rows
        ).astype(np.float64),
    )


def sampler_counts(dataset: Dataset, split: Split, config: Recipe) -> Float64Array:
    """Returns the counts [R] for `make_sampler`; zeros where the loss needs none."""
    counts = config.loss.sampler.counts if config.loss.kind == "sampled" else None
    if counts == "events":
        return num_events(dataset, split).astype(np.float64)
    if counts == "targets":
        return num_targets(dataset, split, config)
    return np.zeros(dataset.num_rows)


def num_events(dataset: Dataset, split: Split) -> Int64Array:
    """Returns the number of training events [R] of each item."""
    return np.bincount(dataset.item_rows_E[training_events(split)[0]], minlength=dataset.num_rows)


def num_targets(dataset: Dataset, split: Split, config: Recipe) -> Float64Array:
    """Returns how often each item [R] is a target in an epoch, on average.

    That is less than its events, and not in proportion to them.
    """
    targets = make_targets(dataset, config.objective)
    positions_E, offsets_B1 = target_windows(split, config, targets).events()
    expected_E = expected_targets(offsets_B1, config.objective)
    if targets.is_target_E is not None:
        expected_E *= targets.is_target_E[positions_E]
    return np.bincount(
        dataset.item_rows_E[positions_E], weights=expected_E, minlength=dataset.num_rows
    ).astype(np.float64)
