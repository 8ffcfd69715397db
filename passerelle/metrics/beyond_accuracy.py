"""Metrics beyond accuracy: coverage, novelty, popularity lift and diversity.

Every function uses the first k positions of `ranked_QK`.
A position with `PADDING_ROW` is empty and does not count.

Shape legend: Q users, K positions of the ranking, R item rows (special rows included), I items,
D width of an item vector, S events of all histories.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from passerelle.arrays import Float32Array, Float64Array, FloatArray, IntArray, NumberArray
from passerelle.categories import category_codes
from passerelle.dataset import FeatureColumn
from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW

MAX_CATEGORIES = 1000
"""Maximum number of distinct values for which categories become item vectors: 4 kB per item."""
_CHUNK_VALUES = 2**24
"""Maximum number of float64 values gathered at once: 128 MB."""


def coverage(ranked_QK: IntArray, num_items: int, k: int) -> float:
    """Share of the catalogue that is among the first k of at least one user.

    Also called aggregate diversity (Ge et al., RecSys 2010).

    >>> coverage(np.array([[2, 3], [3, 0]]), 4, 2)
    0.5
    """
    rows = np.unique(ranked_QK[:, :k])
    return float(np.count_nonzero(rows != PADDING_ROW) / num_items)


def novelty(ranked_QK: IntArray, counts_R: NumberArray, k: int) -> Float64Array:
    """Mean self-information of each user's first k items in bits, `-log2(count / all counts)`.

    As defined by Vargas and Castells, RecSys 2011.

    Args:
        counts_R: training events of each item.
            An item without any counts as one event, because its information would be infinite.

    >>> ranked_QK, counts_R = np.array([[2, 3], [3, 4]]), np.array([0, 0, 4, 2, 2])
    >>> novelty(ranked_QK, counts_R, 2).tolist()  # 1 and 2 bits, 2 and 2 bits
    [1.5, 2.0]
    """
    bits_R = np.log2(max(counts_R.sum(), 1)) - np.log2(np.maximum(counts_R, 1))
    return _mean_of_items(bits_R, ranked_QK[:, :k])


def history_popularity(counts_R: NumberArray, history_rows_S: IntArray, offsets_Q1: IntArray) -> Float64Array:
    """Mean training events of the items of each user's history, which `popularity_lift` compares with.

    Args:
        counts_R: training events of each item.
        history_rows_S: item rows of user q at `offsets_Q1[q] : offsets_Q1[q + 1]`, at least one.

    >>> counts_R, history_rows_S = np.array([0, 0, 9, 3, 2]), np.array([3, 4, 4, 3])
    >>> history_popularity(counts_R, history_rows_S, np.array([0, 1, 4])).round(2).tolist()
    [3.0, 2.33]
    """
    popularity_S = counts_R[history_rows_S].astype(np.float64)
    return np.asarray(np.add.reduceat(popularity_S, offsets_Q1[:-1]) / np.diff(offsets_Q1))


def popularity_lift(
    ranked_QK: IntArray, counts_R: NumberArray, history_popularity_Q: Float64Array, k: int
) -> float:
    """How much more popular recommendations are than histories: `(GAP_ranked - GAP_history) / GAP_history`.

    GAP, the group average popularity, is the mean over users of the mean training events of their items.
    0: as popular as what users chose; 1: twice as popular; below 0: less popular.
    It is 0 where histories hold only items without training events.
    As defined by Abdollahpouri et al., "The connection between popularity bias, calibration, and fairness in
    recommendation", RecSys 2020.

    Args:
        counts_R: training events of each item.
        history_popularity_Q: `history_popularity` of the same users; its mean is the GAP of histories.

    >>> popularity_lift(np.array([[2, 3]]), np.array([0, 0, 9, 3, 2]), np.array([2.5]), 2)
    1.4
    """
    ranked = float(_mean_of_items(counts_R.astype(np.float64), ranked_QK[:, :k]).mean())
    chosen = float(history_popularity_Q.mean())
    return (ranked - chosen) / chosen if chosen > 0 else 0.0


def unit_vectors(vectors_RD: FloatArray) -> FloatArray:
    """Return item vectors [R, D] of length 1, as `intra_list_diversity` takes them.

    Zero vectors stay zero, and the padding row becomes zero.

    >>> unit_vectors(np.array([[9.0, 9.0], [0.0, 0.0], [3.0, 4.0]])).tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.6, 0.8]]
    """
    norms_R1 = np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    unit_RD: FloatArray = vectors_RD / np.where(norms_R1 > 0, norms_R1, 1)
    unit_RD[PADDING_ROW] = 0.0
    return unit_RD


def intra_list_diversity(ranked_QK: IntArray, unit_RD: FloatArray, k: int) -> Float64Array:
    """Mean cosine distance over all pairs of each user's first k items, in [0, 2].

    As defined by Ziegler et al., WWW 2005, and Vargas and Castells, 2011.
    A zero vector is at distance 1 from every other, and a user with fewer than two items has 0.
    The pairs are never formed: the cosines of n unit vectors sum to
    `(|sum of vectors|^2 - sum of |vector|^2) / 2`.

    Args:
        unit_RD: item vectors as `unit_vectors` returns them.

    >>> unit_RD = unit_vectors(np.array([[0, 0], [0, 0], [1, 0], [0, 1], [0, 5]]))
    >>> intra_list_diversity(np.array([[2, 3, 4]]), unit_RD, 3).round(4).tolist()
    [0.6667]
    """
    first_QK = ranked_QK[:, :k]
    count_Q = (first_QK != PADDING_ROW).sum(axis=1)
    sums_Q = np.empty(len(first_QK))
    chunk = max(1, _CHUNK_VALUES // max(1, first_QK.shape[1] * unit_RD.shape[1]))
    for start in range(0, len(first_QK), chunk):
        unit_BKD = unit_RD[first_QK[start : start + chunk]].astype(np.float64)
        sums_Q[start : start + chunk] = (unit_BKD.sum(axis=1) ** 2).sum(axis=1) - (unit_BKD**2).sum(
            axis=(1, 2)
        )
    pairs_Q = count_Q * (count_Q - 1)
    return np.where(pairs_Q > 0, 1.0 - sums_Q / np.maximum(pairs_Q, 1), 0.0)


def category_vectors(items: pa.Table, features: Sequence[FeatureColumn]) -> Float32Array | None:
    """Return one column per value of every categorical item feature, [R, D]: 1 where the item has it, else 0.

    Special rows are zero.
    Returns None where there is no such feature, or more than `MAX_CATEGORIES` distinct values in all.
    """
    columns, rows, width = [], [], 0
    for feature in features:
        if feature.kind not in ("categorical", "multi_categorical"):
            continue
        row_T, code_T, num_values = category_codes(items.column(feature.name))
        columns.append(code_T + width)
        rows.append(row_T)
        width += num_values
    if not 0 < width <= MAX_CATEGORIES:
        return None
    vectors_RD = np.zeros((items.num_rows + FIRST_ITEM_ROW, width), dtype=np.float32)
    vectors_RD[np.concatenate(rows) + FIRST_ITEM_ROW, np.concatenate(columns)] = 1.0
    return vectors_RD


def _mean_of_items(values_R: Float64Array, rows_QK: IntArray) -> Float64Array:
    """Mean of a value over each user's items, 0 for a user without items."""
    found_QK = rows_QK != PADDING_ROW
    return np.asarray(
        np.where(found_QK, values_R[rows_QK], 0.0).sum(axis=1) / np.maximum(found_QK.sum(axis=1), 1)
    )
