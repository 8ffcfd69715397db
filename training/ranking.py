"""Exact top-k over the whole catalogue for a batch of users.

Shape legend: B users, R item rows (special rows included), K ranked items.
"""

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from training.evaluation_batches import EvaluationBatch


def rank_scores(scores_BR: Tensor, batch: EvaluationBatch, k: int, *, exclude_seen: bool = True) -> tuple[Tensor, Tensor]:
    """int64 rows and scores [B, K] of the k best items of given scores, in which those left out are set to -inf.

    Special rows and, by default, seen items are left out. Where fewer than k items remain, the last rows are 0 (padding) with
    score -inf.
    """
    scores_BR[:, :FIRST_ITEM_ROW] = float("-inf")
    if exclude_seen:
        scores_BR[batch.excluded_row_X, batch.excluded_item_X] = float("-inf")
    scores_BK, rows_BK = torch.topk(scores_BR, min(k, scores_BR.shape[1] - FIRST_ITEM_ROW), dim=1)
    return rows_BK.masked_fill(scores_BK.isneginf(), PADDING_ROW), scores_BK
