"""Helpers of baselines: fitted events, sparse user-item matrices, and an order by popularity.

Shape legend: U users, U1 = U + 1, T fitted events, B users of a batch, I items, R item rows (the special
rows, then the items).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
import torch
from torch import Tensor

from passerelle.arrays import Float64Array, Int64Array
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import Split
from training.data.evaluation_batches import EvaluationBatch
from training.data.windows import training_events

Scorer = Callable[[EvaluationBatch], Tensor]
"""Returns float scores [B, R] of every item row for the users of a batch; the caller may overwrite them."""


class Baseline(Protocol):
    """A recommender without gradients.

    Implementations are dataclasses whose init fields are the hyper-parameters.
    """

    def fit(self, dataset: Dataset, split: Split) -> Self:
        """Learns from the events `start_U : train_end_U` of the split alone, and forgets an earlier fit."""
        ...

    def __call__(self, batch: EvaluationBatch) -> Tensor:
        """Returns float64 scores [B, R].

        Histories that are not in the fitted events (validation items, new users) are used in full.
        """
        ...


def hyper_parameters(baseline: Baseline) -> dict[str, Any]:
    """Returns name -> value of the parameters that a baseline was constructed with."""
    assert dataclasses.is_dataclass(baseline)
    return {field.name: getattr(baseline, field.name) for field in dataclasses.fields(baseline) if field.init}


def fitted_events(dataset: Dataset, split: Split) -> tuple[Int64Array, Int64Array]:
    """Returns item rows [T] of the training events by user, oldest first, and the offsets [U1] between
    users.
    """
    positions_T, offsets_U1 = training_events(split)
    return dataset.item_rows_E[positions_T].astype(np.int64), offsets_U1


def user_item_matrix(dataset: Dataset, split: Split) -> sparse.csr_array:
    """Returns float64 [U, I]: 1 where the user has a training event of the item, however many."""
    rows_T, offsets_U1 = fitted_events(dataset, split)
    return binary_matrix(
        np.repeat(np.arange(len(offsets_U1) - 1), np.diff(offsets_U1)),
        rows_T,
        dataset.num_users,
        dataset.num_items,
    )


def history_matrix(batch: EvaluationBatch, num_items: int) -> sparse.csr_array:
    """Returns float64 [B, I]: 1 where the whole history of the user has the item."""
    return binary_matrix(
        batch.seen_row_S.numpy(), batch.seen_item_S.numpy(), len(batch.positions_B), num_items
    )


def binary_matrix(
    users_T: Int64Array, rows_T: Int64Array, num_users: int, num_items: int
) -> sparse.csr_array:
    """Returns float64 [users, items] with a 1 for each pair of user and item row that occurs."""
    matrix = sparse.csr_array(
        (np.ones(len(users_T)), (users_T, rows_T - FIRST_ITEM_ROW)), shape=(num_users, num_items)
    )
    matrix.data[:] = 1.0  # the constructor has summed events of the same pair
    return matrix


def with_special_rows(scores_BI: Float64Array) -> Tensor:
    """Returns scores [B, R] of all rows; the special rows, which are never ranked, have 0."""
    scores_BR = torch.zeros(scores_BI.shape[0], scores_BI.shape[1] + FIRST_ITEM_ROW, dtype=torch.float64)
    scores_BR[:, FIRST_ITEM_ROW:] = torch.from_numpy(scores_BI)
    return scores_BR


def order_shares(*counts_R: npt.NDArray[np.number]) -> Float64Array:
    """Returns a different value in (0, 1] for each item row.

    It is higher for a higher first count, then for a higher second one, then for a lower row.

    >>> order_shares(np.array([5, 1, 5, 7])).tolist()
    [0.75, 0.25, 0.5, 1.0]
    """
    length = len(counts_R[0])
    order_R = np.lexsort((np.arange(length), *(-counts for counts in reversed(counts_R))))
    shares_R = np.empty(length)
    shares_R[order_R] = np.arange(length, 0, -1) / length
    return shares_R
