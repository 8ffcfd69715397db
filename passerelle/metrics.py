"""Ranking metrics over the full catalogue, for users with one or several relevant items.

Every function takes `hits_QK` (bool: is the item at this place relevant?) and `num_relevant_Q` (int: how many are there
in all?) and returns one value a user; the metric of a model is the mean over users.

Shape legend: Q users, Q1 = Q + 1, K places of the ranking, G relevant items of all users, one after the other.
"""

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer]


def hits(ranked_rows_QK: IntArray, relevant_rows_G: IntArray, offsets_Q1: IntArray) -> BoolArray:
    """Whether each ranked item is among its user's relevant ones, `relevant_rows_G[offsets_Q1[q] : offsets_Q1[q + 1]]`.

    >>> hits(np.array([[5, 7], [7, 5]]), np.array([5, 8, 9]), np.array([0, 2, 3])).tolist()
    [[True, False], [False, False]]
    """
    if ranked_rows_QK.size == 0 or relevant_rows_G.size == 0:
        return np.zeros(ranked_rows_QK.shape, dtype=bool)
    stride = int(max(ranked_rows_QK.max(), relevant_rows_G.max())) + 1
    users_G = np.repeat(np.arange(len(offsets_Q1) - 1), np.diff(offsets_Q1))
    keys_G = users_G * stride + relevant_rows_G
    keys_QK = np.arange(len(ranked_rows_QK))[:, None] * stride + ranked_rows_QK
    return np.asarray(np.isin(keys_QK, keys_G))


def recall(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> FloatArray:
    """Relevant items in the first k, over all relevant items. With one relevant item it is the hit rate.

    >>> recall(np.array([[True, False, True]]), np.array([4]), 3).tolist()
    [0.5]
    """
    return np.asarray(hits_QK[:, :k].sum(axis=1) / num_relevant_Q)


def hit_rate(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> FloatArray:
    """1 when any of the first k is relevant, else 0.

    >>> hit_rate(np.array([[True, False, True], [False, False, True]]), np.array([4, 1]), 2).tolist()
    [1.0, 0.0]
    """
    return np.asarray(hits_QK[:, :k].any(axis=1), dtype=np.float64)


def ndcg(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> FloatArray:
    """Sum of 1 / log2(place + 1) over hits in the first k, over its largest possible value.

    >>> ndcg(np.array([[False, True, False]]), np.array([1]), 3).round(4).tolist()
    [0.6309]
    """
    discounts_K = 1.0 / np.log2(np.arange(2, hits_QK[:, :k].shape[1] + 2))
    ideal_K1 = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    return np.asarray((hits_QK[:, :k] * discounts_K).sum(axis=1) / ideal_K1[np.minimum(num_relevant_Q, k)])


def reciprocal_rank(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> FloatArray:
    """1 / place of the first hit in the first k, 0 without one; its mean is the MRR.

    >>> reciprocal_rank(np.array([[False, True], [False, False]]), np.array([1, 1]), 2).tolist()
    [0.5, 0.0]
    """
    first_Q = hits_QK[:, :k].argmax(axis=1)
    return np.asarray(hits_QK[:, :k].any(axis=1) / (first_Q + 1.0))


METRICS = {"recall": recall, "hit_rate": hit_rate, "ndcg": ndcg, "mrr": reciprocal_rank}


def mean_metrics(hits_QK: BoolArray, num_relevant_Q: IntArray, ks: tuple[int, ...]) -> dict[str, float]:
    """Every metric at every k, averaged over users, as `{"ndcg@10": 0.12, ...}`."""
    return {f"{name}@{k}": float(metric(hits_QK, num_relevant_Q, k).mean()) for k in ks for name, metric in METRICS.items()}
