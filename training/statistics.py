"""Counts of items over the events that training may see.

Shape legend: E events, R item rows (special rows included).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from passerelle.dataset import Dataset
from passerelle.features import DAY_MS
from passerelle.splits import Split


@dataclass(frozen=True)
class ItemStatistics:
    """Events of each item."""

    num_events_R: npt.NDArray[np.int64]
    """Over all of training, each counting one."""
    counts_R: npt.NDArray[np.float64]
    """Their weights, over all of training."""
    recent_counts_R: npt.NDArray[np.float64]
    """Their weights, over its last days."""


def item_statistics(dataset: Dataset, split: Split, recent_days: int) -> ItemStatistics:
    """Counts over the training events of every user; nothing of validation or test."""
    edges_E = np.zeros(len(dataset.item_rows_E) + 1, dtype=np.int8)
    np.add.at(edges_E, split.start_U, 1)
    np.add.at(edges_E, split.train_end_U, -1)
    training_E = np.cumsum(edges_E[:-1], dtype=np.int8).astype(bool)
    rows, weights = dataset.item_rows_E[training_E], dataset.weights_E[training_E]
    times_ms = dataset.timestamps_ms_E[training_E]
    recent = times_ms > times_ms.max() - recent_days * DAY_MS
    return ItemStatistics(
        num_events_R=np.bincount(rows, minlength=dataset.num_rows),
        counts_R=np.bincount(rows, weights=weights, minlength=dataset.num_rows).astype(np.float64),
        recent_counts_R=np.bincount(rows[recent], weights=weights[recent], minlength=dataset.num_rows).astype(np.float64),
    )
