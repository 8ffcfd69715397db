"""A linear model of every item by all others, in closed form.

Shape legend: U users, B users of a batch, I items, C items of a chunk, R item rows (the special rows, then
the items).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from torch import Tensor

from passerelle.arrays import Float64Array
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import Split
from training.data.evaluation_batches import EvaluationBatch
from training.evaluation.baselines.base import history_matrix, user_item_matrix, with_special_rows

_CHUNK_VALUES = 2**24
"""Maximum of co-occurrences held as a sparse product at once."""


@dataclass
class Ease:
    """Embarrassingly Shallow Autoencoder (Steck, WWW 2019).

    Its weights [I, I], with a zero diagonal, reconstruct the binary user-item matrix from itself with least
    error, under a squared penalty.
    With `P = inverse(X'X + regularization * identity)`, the weight of item i for item j is
    `-P[i, j] / P[j, j]`; the score of an item is the sum of the weights of the whole history for it.
    Solved in float64; repeated events count once.

    Args:
        regularization: penalty on squared weights (> 0), in users; 200 to 1000 suits most catalogues.
        max_items: largest catalogue that `fit` accepts: memory grows with its square, time with its cube.

    Raises:
        UserError: from `fit`: the catalogue is above `max_items`.
    """

    regularization: float = 500.0
    max_items: int = 30_000
    _weights_II: Float64Array | None = field(default=None, init=False, repr=False)

    def fit(self, dataset: Dataset, split: Split) -> Self:
        """Inverts one [I, I] matrix."""
        num_items = dataset.num_items
        if num_items > self.max_items:
            gigabytes = 4 * 8 * num_items**2 / 1e9  # the matrix, its inverse, and the solver's copies of both
            raise UserError(
                f"baseline ease: {num_items} items are above its limit of {self.max_items}, and would take "
                f"about {gigabytes:.0f} GB of memory: name the baselines without it, and not all"
            )
        seen_UI = user_item_matrix(dataset, split)
        by_item_IU = seen_UI.T.tocsr()
        gram_II = np.empty((num_items, num_items))
        chunk = max(1, _CHUNK_VALUES // num_items)
        for start in range(0, num_items, chunk):
            gram_II[start : start + chunk] = (by_item_IU[start : start + chunk] @ seen_UI).toarray()
        gram_II[np.diag_indices(num_items)] += self.regularization
        weights_II = np.asarray(np.linalg.inv(gram_II), dtype=np.float64)
        weights_II /= -np.diag(weights_II)
        weights_II[np.diag_indices(num_items)] = 0.0
        self._weights_II = weights_II
        return self

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        assert self._weights_II is not None, "not fitted"
        return with_special_rows(history_matrix(batch, len(self._weights_II)) @ self._weights_II)
