"""Which events training asks for, and how much each weighs.

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
    """Of a dataset, as a recipe wants them."""

    is_target_E: BoolArray | None
    """Which events are right answers; None: all."""
    weights_E: Float32Array
    """What each weighs as one."""


def make_targets(dataset: Dataset, config: ObjectiveConfig) -> Targets:
    """Events of the kinds that the recipe names, with the weights of the dataset, repeats counting as it
    says.

    Raises:
        UserError: there is no such kind of event.
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
    """How many of some events (positions in ascending order) each is a repeat of: before it, by the same
    user, with the same item.
    """
    pairs = dataset.user_rows_of(positions) * np.int64(dataset.num_rows) + dataset.item_rows_E[positions]
    order = np.argsort(pairs, kind="stable")
    starts_group = (
        np.concatenate([[True], pairs[order][1:] != pairs[order][:-1]])
        if len(order)
        else np.zeros(0, dtype=bool)
    )
    place = np.arange(len(order))
    before = np.empty(len(order), dtype=np.int64)
    before[order] = place - np.maximum.accumulate(np.where(starts_group, place, 0))
    return before


def target_windows(split: Split, config: Recipe, targets: Targets) -> Windows:
    """The training windows that ask for anything."""
    windows = training_windows(split, config.model.max_history + 1)
    if targets.is_target_E is None:
        return windows
    before_E1 = np.concatenate([[0], np.cumsum(targets.is_target_E)])
    return windows.take(
        np.flatnonzero(before_E1[windows.end_W] > before_E1[windows.start_W + 1])
    )  # the first event is never asked for
