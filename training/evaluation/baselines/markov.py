"""A first-order Markov chain, by maximum likelihood: what users did next after the last item.

Shape legend: T fitted events, B users of a batch, I items, R item rows (the special rows, then the items).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import scipy.sparse as sparse
from torch import Tensor

from passerelle.arrays import Float64Array
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import Split
from training.data.evaluation_batches import EvaluationBatch
from training.evaluation.baselines.base import fitted_events, order_shares, with_special_rows

TIE_WEIGHT = 0.5
"""Added to the count of the most popular item: less than one transition, so that it orders equal counts
alone."""


@dataclass
class Markov:
    """Scores items by how often they came right after the last item of the history.

    Pairs are consecutive training events of each user.

    Equal counts, and with them all items that never followed, are ordered by training events (not weighted),
    then by lower row.
    """

    _transitions: sparse.csr_array | None = field(default=None, init=False, repr=False)
    _ties_I: Float64Array | None = field(default=None, init=False, repr=False)

    def fit(self, dataset: Dataset, split: Split) -> Self:
        """Counts transitions [I, I] from an item to the next."""
        rows_T, offsets_U1 = fitted_events(dataset, split)
        from_same_user_T = np.ones(len(rows_T), dtype=bool)
        from_same_user_T[offsets_U1[:-1][np.diff(offsets_U1) > 0]] = False
        into = np.flatnonzero(from_same_user_T)
        pairs = (rows_T[into - 1] - FIRST_ITEM_ROW, rows_T[into] - FIRST_ITEM_ROW)
        self._transitions = sparse.csr_array(
            (np.ones(len(into)), pairs), shape=(dataset.num_items, dataset.num_items)
        )
        self._ties_I = TIE_WEIGHT * order_shares(
            np.bincount(rows_T - FIRST_ITEM_ROW, minlength=dataset.num_items)
        )
        return self

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        assert self._transitions is not None and self._ties_I is not None, "not fitted"
        last_B = batch.histories.items_BL[:, -1].numpy() - FIRST_ITEM_ROW
        return with_special_rows(self._transitions[last_B].toarray() + self._ties_I)
