"""Ranking metrics over the full catalogue, for users with one or several relevant items.

The functions in `METRICS` take `hits_QK` (bool: whether the item at a position is relevant) and
`num_relevant_Q` (int: relevant items of each user); `auc` takes counts over the whole ranking.
Each returns one float64 per user, and the metric of a model is the mean over users.

Definitions:
    precision, recall, AUC: Herlocker et al., "Evaluating collaborative filtering recommender systems",
        TOIS 2004
    NDCG: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002

Shape legend: Q users, Q1 = Q + 1, K positions of the ranking, G relevant items of all users, concatenated.
"""

import numpy as np

from passerelle.arrays import BoolArray, Float64Array, IntArray


def hits(ranked_rows_QK: IntArray, relevant_rows_G: IntArray, offsets_Q1: IntArray) -> BoolArray:
    """Return whether each ranked item is relevant to its user.

    The relevant items of user q are `relevant_rows_G[offsets_Q1[q] : offsets_Q1[q + 1]]`.

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


def recall(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> Float64Array:
    """Relevant items in the first k, over all relevant items.

    With one relevant item it is the hit rate.

    >>> recall(np.array([[True, False, True]]), np.array([4]), 3).tolist()
    [0.5]
    """
    return np.asarray(hits_QK[:, :k].sum(axis=1) / num_relevant_Q)


def precision(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> Float64Array:
    """Relevant items in the first k, over k, however few items there are to rank.

    >>> precision(np.array([[True, False, True, False]]), np.array([4]), 4).tolist()
    [0.5]
    """
    return np.asarray(hits_QK[:, :k].sum(axis=1) / k)


def hit_rate(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> Float64Array:
    """1 when any of the first k is relevant, else 0.

    >>> hit_rate(np.array([[True, False, True], [False, False, True]]), np.array([4, 1]), 2).tolist()
    [1.0, 0.0]
    """
    return np.asarray(hits_QK[:, :k].any(axis=1), dtype=np.float64)


def ndcg(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> Float64Array:
    """Sum of 1 / log2(position + 1) over hits in the first k, over its largest possible value.

    >>> ndcg(np.array([[False, True, False]]), np.array([1]), 3).round(4).tolist()
    [0.6309]
    """
    discounts_K = 1.0 / np.log2(np.arange(2, hits_QK[:, :k].shape[1] + 2))
    ideal_K1 = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    return np.asarray((hits_QK[:, :k] * discounts_K).sum(axis=1) / ideal_K1[np.minimum(num_relevant_Q, k)])


def reciprocal_rank(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> Float64Array:
    """1 / position of the first hit in the first k, 0 without one; its mean is the MRR.

    >>> reciprocal_rank(np.array([[False, True], [False, False]]), np.array([1, 1]), 2).tolist()
    [0.5, 0.0]
    """
    first_Q = hits_QK[:, :k].argmax(axis=1)
    return np.asarray(hits_QK[:, :k].any(axis=1) / (first_Q + 1.0))


def average_precision(hits_QK: BoolArray, num_relevant_Q: IntArray, k: int) -> Float64Array:
    """Sum over hits in the first k of the precision at the hit, over min(num_relevant, k).

    Its mean is the MAP.
    With that divisor the best ranking of k items scores 1, also for a user with more than k relevant items.

    >>> hits_QK = np.array([[True, False, True]])
    >>> average_precision(hits_QK, np.array([2]), 3).round(4).tolist()  # (1/1 + 2/3) / 2
    [0.8333]
    """
    first_QK = hits_QK[:, :k]
    precision_QK = np.cumsum(first_QK, axis=1) / np.arange(1, first_QK.shape[1] + 1)
    return np.asarray((precision_QK * first_QK).sum(axis=1) / np.minimum(num_relevant_Q, k))


def auc(above_G: IntArray, ties_G: IntArray, num_others_G: IntArray, offsets_Q1: IntArray) -> Float64Array:
    """Area under the ROC curve of the whole ranking: the chance that a relevant item scores above another.

    A user's value is the mean over relevant items of `1 - (above + ties / 2) / num_others`.

    Args:
        above_G: ranked items that are not relevant and score higher than the relevant one.
        ties_G: ranked items that are not relevant and score the same.
        num_others_G: ranked items that are not relevant, of the user of each relevant one.
            Where there is none, the value is 1/2.
        offsets_Q1: relevant items of user q are `offsets_Q1[q] : offsets_Q1[q + 1]`, one at least.

    >>> above_G, ties_G, num_others_G = np.array([[0, 2, 1], [0, 0, 2], [4, 4, 4]])
    >>> auc(above_G, ties_G, num_others_G, np.array([0, 2, 3])).tolist()  # (1 + 1/2) / 2; 1 - 2/4
    [0.75, 0.5]
    """
    if not len(above_G):
        return np.zeros(0)
    values_G = np.where(num_others_G > 0, 1.0 - (above_G + 0.5 * ties_G) / np.maximum(num_others_G, 1), 0.5)
    return np.asarray(np.add.reduceat(values_G, offsets_Q1[:-1]) / np.diff(offsets_Q1))


METRICS = {
    "recall": recall,
    "precision": precision,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "map": average_precision,
}


def user_metrics(
    hits_QK: BoolArray, num_relevant_Q: IntArray, ks: tuple[int, ...]
) -> dict[str, Float64Array]:
    """Every metric at every k, as `{"ndcg@10": one value a user, ...}`."""
    return {f"{name}@{k}": metric(hits_QK, num_relevant_Q, k) for k in ks for name, metric in METRICS.items()}


def mean_metrics(hits_QK: BoolArray, num_relevant_Q: IntArray, ks: tuple[int, ...]) -> dict[str, float]:
    """Every metric at every k, averaged over users, as `{"ndcg@10": 0.12, ...}`."""
    return {
        name: float(values_Q.mean()) for name, values_Q in user_metrics(hits_QK, num_relevant_Q, ks).items()
    }
