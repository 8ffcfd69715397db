"""Exact top-k over the whole catalogue for a batch of queries.

Shape legend: B users, D width, R item rows (special rows included), K ranked items.
"""

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from training.evaluation_batches import EvaluationBatch


def rank_items(query_BD: Tensor, table_RD: Tensor, batch: EvaluationBatch, k: int, *, exclude_seen: bool = True) -> Tensor:
    """int64 [B, K] rows of the k best items by inner product; special rows and, by default, seen items are left out."""
    return rank_scores((query_BD @ table_RD.T).float(), batch, k, exclude_seen=exclude_seen)[0]


def rank_scores(scores_BR: Tensor, batch: EvaluationBatch, k: int, *, exclude_seen: bool = True) -> tuple[Tensor, Tensor]:
    """Rows and scores [B, K] of the best items of given scores (overwritten), with the same exclusions as `rank_items`.

    Where fewer than k items are left, the remaining rows are 0 (padding) with score -inf.
    """
    scores_BR[:, :FIRST_ITEM_ROW] = float("-inf")
    if exclude_seen:
        scores_BR[batch.seen_row_S, batch.seen_item_S] = float("-inf")
    scores_BK, rows_BK = torch.topk(scores_BR, min(k, scores_BR.shape[1] - FIRST_ITEM_ROW), dim=1)
    return rows_BK.masked_fill(scores_BK.isneginf(), PADDING_ROW), scores_BK
