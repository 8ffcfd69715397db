"""Exact top-k by inner product: the oracle every index is measured against.

Shape legend: Q queries, R item rows (special rows included), D vector width, K results.
"""

import numpy as np

from passerelle.arrays import BoolArray, Float32Array, FloatArray, Int64Array
from passerelle.ids import FIRST_ITEM_ROW


def exact_topk(
    query_QD: FloatArray,
    vectors_RD: FloatArray,
    k: int,
    allowed_QR: BoolArray | None = None,
) -> tuple[Int64Array, Float32Array]:
    """Returns rows and scores of the k best items of each query, best first, ties by
    lower row, without special rows.

    Where fewer than k rows are allowed, the remaining rows are 0 (padding) with score -inf.

    Returns:
        rows_QK int64, scores_QK float32.
    """
    scores_QR = query_QD.astype(np.float32) @ vectors_RD.astype(np.float32).T
    scores_QR[:, :FIRST_ITEM_ROW] = -np.inf
    if allowed_QR is not None:
        scores_QR[~allowed_QR] = -np.inf
    rows_QK = np.argsort(-scores_QR, axis=1, kind="stable")[:, :k]
    scores_QK = np.take_along_axis(scores_QR, rows_QK, axis=1)
    return np.where(np.isneginf(scores_QK), 0, rows_QK), scores_QK
