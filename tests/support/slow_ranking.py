"""Rankings and metrics of one user at a time, and random scores for them.

Shape legend: Q users of a part, B users of a batch, R item rows.
"""

import math

import numpy as np
import torch

from passerelle.arrays import Float32Array, FloatArray
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import EvaluationUsers, SplitConfig
from training.evaluation.baselines.base import Scorer

GLOBAL_TIME = SplitConfig(rule="global_time", validation_fraction=0.2, test_fraction=0.2)


def history_of(dataset: Dataset, users: EvaluationUsers, position: int) -> list[int]:
    return [
        int(row)
        for row in dataset.item_rows_E[users.history_start_Q[position] : users.history_end_Q[position]]
    ]


def targets_of(dataset: Dataset, users: EvaluationUsers, position: int) -> list[int]:
    """Returns distinct targets: an item bought twice can be found only once."""
    return sorted(
        {
            int(row)
            for row in dataset.item_rows_E[users.history_end_Q[position] : users.target_end_Q[position]]
        }
    )


def slow_ranking(scores_R: FloatArray, seen: list[int], k: int) -> list[int]:
    """Returns all unseen items, best first, then padding."""
    left = sorted(
        (row for row in range(FIRST_ITEM_ROW, len(scores_R)) if row not in seen),
        key=lambda row: -scores_R[row],
    )
    return (left + [0] * k)[:k]


def slow_metrics(ranking: list[int], targets: list[int], k: int) -> dict[str, float]:
    hits = [position for position, row in enumerate(ranking[:k]) if row in targets]
    gain = sum(1 / math.log2(position + 2) for position in hits)
    ideal = sum(1 / math.log2(position + 2) for position in range(min(k, len(targets))))
    first = 1 / (hits[0] + 1) if hits else 0.0
    precisions = [len([hit for hit in hits if hit <= position]) / (position + 1) for position in hits]
    return {
        f"recall@{k}": len(hits) / len(targets),
        f"precision@{k}": len(hits) / k,
        f"hit_rate@{k}": float(bool(hits)),
        f"ndcg@{k}": gain / ideal,
        f"mrr@{k}": first,
        f"map@{k}": sum(precisions) / min(k, len(targets)),
    }


def slow_auc(scores_R: FloatArray, seen: list[int], targets: list[int]) -> float:
    """Returns the mean over pairs of a target and another ranked item; excluded targets rank below all."""
    others = [row for row in range(FIRST_ITEM_ROW, len(scores_R)) if row not in seen and row not in targets]
    values = []
    for target in targets:
        wins = [
            float(scores_R[target] > scores_R[row]) + 0.5 * float(scores_R[target] == scores_R[row])
            for row in others
        ]
        values.append(float(np.mean(wins)) if target not in seen else 0.0)
    return float(np.mean(values))


def random_scorer(users: EvaluationUsers, num_rows: int) -> tuple[Scorer, Float32Array]:
    """Returns distinct random scores of users and items, with the highest for special rows."""
    scores_QR = (
        np.random.default_rng(0)
        .permutation(len(users) * num_rows)
        .reshape(len(users), num_rows)
        .astype(np.float32)
    )
    scores_QR[:, :FIRST_ITEM_ROW] = scores_QR.max() + 1
    return lambda batch: torch.from_numpy(scores_QR[batch.positions_B]), scores_QR
