"""Popularity: the same items for every user, by training events of all time or of late.

Shape legend: B users of a batch, R item rows (special rows included).
"""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from passerelle.arrays import Float64Array
from passerelle.dataset import Dataset
from passerelle.splits import Split
from training.data.evaluation_batches import EvaluationBatch
from training.data.statistics import item_statistics
from training.evaluation.baselines.base import Scorer, order_shares


def order_scorer(*counts_R: Float64Array) -> Scorer:
    """Returns a scorer that gives every user the same scores.

    They follow the first count, ties by the next one, then by lower row, as in serving, whatever k is.
    """
    shares_R = torch.from_numpy(order_shares(*counts_R))
    return lambda batch: shares_R.repeat(len(batch.positions_B), 1)


@dataclass
class Popularity:
    """Scores items by their weighted training events; ties by lower row."""

    _scorer: Scorer | None = field(default=None, init=False, repr=False)

    def fit(self, dataset: Dataset, split: Split) -> Self:
        """Counts events."""
        self._scorer = order_scorer(item_statistics(dataset, split, recent_days=1).counts_R)
        return self

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        assert self._scorer is not None, "not fitted"
        return self._scorer(batch)


@dataclass
class RecentPopularity:
    """Scores items by their weighted training events in the last days before the end of training.

    Ties, such as items without any, are ordered by events of all time.

    Args:
        days: how far to look back (> 0) from the newest training event of all users.
    """

    days: int = 30
    _scorer: Scorer | None = field(default=None, init=False, repr=False)

    def fit(self, dataset: Dataset, split: Split) -> Self:
        """Counts events."""
        statistics = item_statistics(dataset, split, self.days)
        self._scorer = order_scorer(statistics.recent_counts_R, statistics.counts_R)
        return self

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        assert self._scorer is not None, "not fitted"
        return self._scorer(batch)
