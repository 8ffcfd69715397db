"""Item-based nearest neighbours: items seen by the same users as those of the history.

Shape legend: U users, B users of a batch, I items, C items of a chunk, R item rows (the special rows, then
the items).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import scipy.sparse as sparse
from torch import Tensor

from passerelle.arrays import Float64Array
from passerelle.dataset import Dataset
from passerelle.splits import Split
from training.data.evaluation_batches import EvaluationBatch
from training.evaluation.baselines.base import (
    history_matrix,
    order_shares,
    user_item_matrix,
    with_special_rows,
)

TIE_WEIGHT = 1e-9
"""Added to the sum of similarities of the most popular item, so that equal sums, also zero, have an order."""
_CHUNK_VALUES = 2**23
"""Maximum of similarities in a chunk: 64 MB."""


@dataclass
class ItemKnn:
    """Scores items by the sum of similarities to the items of the whole history (Deshpande and Karypis, TOIS
    2004).

    The similarity of items i and j is the shrunk cosine of their users, `both / (sqrt(users of i * users of
    j) + shrinkage)`; each item of the history votes for its `num_neighbours` most similar items (not itself),
    equal ones by lower row.
    Repeated events count once.
    Items of equal sums are in descending order of their number of users.

    Args:
        num_neighbours: items that one item of a history votes for, at most (> 0).
        shrinkage: in users (>= 0); takes weight from similarities that rest on few of them (Bell and Koren,
            ICDM 2007).
    """

    num_neighbours: int = 100
    shrinkage: float = 10.0
    _similarity: sparse.csr_array | None = field(default=None, init=False, repr=False)
    _ties_I: Float64Array | None = field(default=None, init=False, repr=False)

    def fit(self, dataset: Dataset, split: Split) -> Self:
        """Finds neighbours [I, I] of all items, a chunk at a time.

        Dense matrices have 64 MB at most, and a handful exist at once.
        """
        seen_UI = user_item_matrix(dataset, split)
        by_item_IU = seen_UI.T.tocsr()
        users_I = np.diff(by_item_IU.indptr).astype(np.float64)
        chunk = max(1, _CHUNK_VALUES // dataset.num_items)
        chunks = []
        for start in range(0, dataset.num_items, chunk):
            both_CI = (by_item_IU[start : start + chunk] @ seen_UI).toarray()
            both_CI[np.arange(len(both_CI)), start + np.arange(len(both_CI))] = 0.0
            norms_CI = np.sqrt(users_I[start : start + chunk, None] * users_I) + self.shrinkage
            similarity_CI = np.divide(both_CI, norms_CI, out=np.zeros_like(both_CI), where=both_CI > 0)
            chunks.append(sparse.csr_array(keep_largest(similarity_CI, self.num_neighbours)))
        self._similarity = sparse.vstack(chunks, format="csr")
        self._ties_I = TIE_WEIGHT * order_shares(users_I)
        return self

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        assert self._similarity is not None and self._ties_I is not None, "not fitted"
        votes_BI = (history_matrix(batch, len(self._ties_I)) @ self._similarity).toarray()
        return with_special_rows(votes_BI + self._ties_I)


def keep_largest(values_CI: Float64Array, count: int) -> Float64Array:
    """Returns the values with all but the `count` largest of each row set to 0.

    Of equal values, those further left stay.

    >>> keep_largest(np.array([[1.0, 3.0, 1.0, 2.0]]), 3).tolist()
    [[1.0, 3.0, 0.0, 2.0]]
    """
    width = values_CI.shape[1]
    if count >= width:
        return values_CI
    smallest_C1 = np.partition(values_CI, width - count, axis=1)[:, width - count, None]
    above_CI, equal_CI = values_CI > smallest_C1, values_CI == smallest_C1
    num_equal_C1 = count - above_CI.sum(axis=1, keepdims=True)
    return np.where(above_CI | (equal_CI & (np.cumsum(equal_CI, axis=1) <= num_equal_C1)), values_CI, 0.0)
