"""Scores and histories in plain form, for tests of baselines.

Shape legend: Q users, R item rows (special rows included).
"""

import numpy as np
import torch

from passerelle.arrays import Float64Array
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import EvaluationUsers, Split
from training.data.evaluation_batches import EvaluationBatches
from training.evaluation.baselines.base import Baseline


def scores_of(
    baseline: Baseline, dataset: Dataset, users: EvaluationUsers, max_history: int = 5
) -> Float64Array:
    """Scores [Q, R] in the order of `users`, from several batches of a few users."""
    scores_QR = np.full((len(users), dataset.num_rows), np.nan)
    for batch in EvaluationBatches(dataset, users, max_history=max_history, token_budget=64):
        scores_BR = baseline(batch)
        assert scores_BR.dtype == torch.float64
        scores_QR[batch.positions_B] = scores_BR.numpy()
    return scores_QR


def training_of(dataset: Dataset, split: Split) -> list[list[int]]:
    return [
        dataset.item_rows_E[start:end].tolist()
        for start, end in zip(split.start_U, split.train_end_U, strict=True)
    ]


def histories_of(dataset: Dataset, users: EvaluationUsers) -> list[list[int]]:
    return [
        dataset.item_rows_E[start:end].tolist()
        for start, end in zip(users.history_start_Q, users.history_end_Q, strict=True)
    ]


def ranked(scores_R: Float64Array) -> list[int]:
    """Item rows, best first; no two may be equal."""
    assert len(np.unique(scores_R[FIRST_ITEM_ROW:])) == len(scores_R) - FIRST_ITEM_ROW
    return (np.argsort(-scores_R[FIRST_ITEM_ROW:]) + FIRST_ITEM_ROW).tolist()


def binary(histories: list[list[int]], num_items: int) -> Float64Array:
    matrix = np.zeros((len(histories), num_items))
    for user, rows in enumerate(histories):
        for row in rows:
            matrix[user, row - FIRST_ITEM_ROW] = 1
    return matrix
