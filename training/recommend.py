"""Recommendations of a trained run without a server: for users of its dataset, and for items.

Shape legend: Q users, K items of a list, R item rows, D vector width.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, Id, IdMap
from passerelle.ids import ITEM_ID, PADDING_ROW, USER_ID
from passerelle.splits import EvaluationUsers
from passerelle.topk import exact_topk
from training.evaluation.evaluate import rank_users
from training.runs.open_run import OpenRun


def recommend(run: OpenRun, user_ids: Sequence[Id], k: int = 10) -> pa.Table:
    """Rank the whole catalogue for some users after all of their events, by the model without the ranker.

    Items that a user has seen are left out.

    Returns:
        One row per recommendation, best first within a user: `user_id`, `item_id` and `score` (float32).
        A user who has seen nearly everything has fewer than k rows.

    Raises:
        UserError: a user is not in the dataset, or k is below 1 or above the number of items.
    """
    dataset = run.dataset
    _check_k(k, dataset.num_items)
    users, items = dataset.user_ids(), dataset.item_ids()
    user_rows_Q = np.array([_known_row(users, user_id, USER_ID) for user_id in user_ids], dtype=np.int64)
    start_Q, end_Q = dataset.offsets_U1[user_rows_Q], dataset.offsets_U1[user_rows_Q + 1]
    asked = EvaluationUsers(user_rows_Q, start_Q, end_Q, end_Q, run.split.is_target_E)
    max_history = run.manifest.config.model.max_history
    rows_QK, scores_QK = rank_users(dataset, asked, run.model.scores, k, max_history=max_history)
    found_QK = rows_QK != PADDING_ROW
    columns = {
        USER_ID: pa.array(users.ids(user_rows_Q.repeat(found_QK.sum(axis=1))), users.type),
        ITEM_ID: pa.array(items.ids(rows_QK[found_QK]), items.type),
        "score": scores_QK[found_QK],
    }
    return pa.table(columns)


def similar_items(run: OpenRun, item_id: Id, k: int = 10) -> pa.Table:
    """The k items whose vectors are nearest to an item's, by cosine.

    Returns:
        `item_id` and `score` (float32, cosine), best first.

    Raises:
        UserError: the item is not in the dataset, or k is below 1 or above the number of other items.
    """
    items = run.dataset.item_ids()
    _check_k(k, run.dataset.num_items - 1)
    row = _known_row(items, item_id, ITEM_ID)
    lengths_R1 = np.linalg.norm(run.vectors_RD, axis=1, keepdims=True)
    unit_RD = run.vectors_RD / np.maximum(lengths_R1, np.finfo(np.float32).tiny)
    allowed_QR = np.arange(len(unit_RD))[None, :] != row
    rows_QK, scores_QK = exact_topk(unit_RD[row][None, :], unit_RD, k, allowed_QR)
    return pa.table({ITEM_ID: pa.array(items.ids(rows_QK[0]), items.type), "score": scores_QK[0]})


def _known_row(ids: IdMap, value: Id, name: str) -> int:
    row = ids.row(ids.parse(value))
    if row == UNKNOWN_ROW:
        raise UserError(f"{name} {value!r}: not in the dataset")
    return row


def _check_k(k: int, num_items: int) -> None:
    if not 1 <= k <= num_items:
        raise UserError(f"k = {k}: it must lie between 1 and {num_items}")
