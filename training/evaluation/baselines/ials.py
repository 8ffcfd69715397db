"""Matrix factorisation for implicit feedback; the only file that imports `implicit`.

Shape legend: U users, B users of a batch, I items, F factors, R item rows (the special rows, then the items).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import scipy.sparse as sparse
import torch
from torch import Tensor

from passerelle.dataset import Dataset
from passerelle.splits import Split
from training.data.evaluation_batches import EvaluationBatch
from training.evaluation.baselines.base import history_matrix, user_item_matrix, with_special_rows

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares


@dataclass
class ImplicitAls:
    """Alternating least squares on the binary user-item matrix (Hu, Koren and Volinsky, ICDM 2008).

    The library `implicit` does the work.

    The factors of a user are solved anew from the whole history and the fitted item factors, so that users
    and events that were not fitted are used like all others; the score of an item is the inner product.

    Args:
        factors: width of users and items.
        regularization: penalty on squared factors (>= 0).
        confidence: weight of a seen item (>= 1); an unseen one has 1.
        iterations: times both sides are solved.
        seed: seeds the initial factors.
    """

    factors: int = 64
    regularization: float = 1.0
    confidence: float = 5.0
    iterations: int = 15
    seed: int = 0
    _model: "AlternatingLeastSquares | None" = field(default=None, init=False, repr=False)

    def fit(self, dataset: Dataset, split: Split) -> Self:
        """Factorises with as many threads as torch has; the result does not depend on their number."""
        # Imported here, because loading the library takes long.
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):  # it runs threads of its own, and warns of those of BLAS
            self._model = AlternatingLeastSquares(
                factors=self.factors,
                regularization=self.regularization,
                alpha=self.confidence,
                iterations=self.iterations,
                num_threads=torch.get_num_threads(),
                random_state=self.seed,
            )
            self._model.fit(_for_implicit(user_item_matrix(dataset, split)), show_progress=False)
        return self

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        assert self._model is not None, "not fitted"
        item_factors_IF = self._model.item_factors
        history_BI = _for_implicit(history_matrix(batch, len(item_factors_IF)))
        user_factors_BF = self._model.recalculate_user(batch.positions_B, history_BI)
        return with_special_rows((user_factors_BF @ item_factors_IF.T).astype("float64"))


def _for_implicit(matrix: sparse.csr_array) -> sparse.csr_matrix:
    """Converts to what the library takes: the older class, and float32."""
    return sparse.csr_matrix(matrix, dtype="float32")
