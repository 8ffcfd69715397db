"""Which events are predicted in training, and how much each weighs.

Shape legend: E events, W windows.
"""

from dataclasses import dataclass

import numpy as np

from passerelle.arrays import BoolArray, Float32Array, Int64Array
from passerelle.dataset import Dataset
from passerelle.splits import Split
from training.config import ObjectiveConfig, Recipe
from training.data.windows import Windows, training_windows


@dataclass(frozen=True)
class Targets:
    """Targets of a dataset, as a recipe chooses them."""

    is_target_E: BoolArray | None
    """Which events may be targets; None: all."""
    weights_E: Float32Array
    """Weight of each event as a target."""


def make_targets(dataset: Dataset, config: ObjectiveConfig) -> Targets:
    """Returns the events of the recipe's event types, weighted as the dataset and `objective.repeats` say.

    Raises:
        UserError: there is no such event type.
    """
    is_target_E = (
        dataset.is_of_type(config.event_types, "objective.event_types") if config.event_types else None
    )
    if config.repeats == "each":
        return Targets(is_target_E, dataset.weights_E)
    counted = np.arange(len(dataset.item_rows_E)) if is_target_E is None else np.flatnonzero(is_target_E)
    number = times_before(dataset, counted) + 1
    weights_E = dataset.weights_E.copy()
    weights_E[counted] *= np.log2(1 + 1 / number).astype(np.float32)
    return Targets(is_target_E, weights_E)


def times_before(dataset: Dataset, positions: Int64Array) -> Int64Array:
    """Returns, for each of some events, how many of them are earlier ones of the same user and item.

    Args:
        positions: positions of the events, ascending.
    """
    pairs = dataset.user_rows_of(positions) * np.int64(dataset.num_rows) + dataset.item_rows_E[positions]
    order = np.argsort(pairs, kind="stable")
    starts_group = (
        np.concatenate([[True], pairs[order][1:] != pairs[order][:-1]])
        if len(order)
        else np.zeros(0, dtype=bool)
    )
    index = np.arange(len(order))
    before = np.empty(len(order), dtype=np.int64)
    before[order] = index - np.maximum.accumulate(np.where(starts_group, index, 0))
    return before


def target_windows(split: Split, config: Recipe, targets: Targets) -> Windows:
    """Returns the training windows that have a target."""
    windows = training_windows(split, config.model.max_history + 1)
    if targets.is_target_E is None:
        return windows
    before_E1 = np.concatenate([[0], np.cumsum(targets.is_target_E)])
    # the first event is never a target
    return windows.take(np.flatnonzero(before_E1[windows.end_W] > before_E1[windows.start_W + 1]))
