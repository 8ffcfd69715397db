"""Reads training batches back: windows, events and masks.

Shape legend: T tokens, B1 windows of a batch + 1.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW, MASK_ROW
from training.data.batches import Batch, EpochBatches

Window = tuple[tuple[int, ...], tuple[int, ...]]
"""Item rows of a window, and which positions are masked."""


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


def slow_windows(start: int, end: int, max_length: int) -> list[list[int]]:
    """Take events from the newest on; a window that would hold a single event is not worth having."""
    windows, events = [], list(range(start, end))
    while events:
        windows.append(events[-max_length:])
        events = events[:-max_length]
    return [window for window in windows if len(window) > 1]
