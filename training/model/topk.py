"""Exact top-k over the whole catalogue for a batch of users.

Shape legend: B users, R item rows (special rows included), S rows of a shard, K ranked items,
C candidates of all shards.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from training.data.evaluation_batches import EvaluationBatch
from training.model.items import CandidatesShard


def rank_scores(
    scores_BR: Tensor, batch: EvaluationBatch, k: int, *, exclude_seen: bool = True
) -> tuple[Tensor, Tensor]:
    """Returns int64 rows and scores [B, K] of the k best items.

    Special rows and, by default, seen items are excluded: their scores are set to -inf, in place.
    Where fewer than k items remain, the last rows are 0 (padding) with score -inf.
    """
    scores_BR[:, :FIRST_ITEM_ROW] = float("-inf")
    if exclude_seen:
        scores_BR[batch.excluded_row_X, batch.excluded_item_X] = float("-inf")
    scores_BK, rows_BK = torch.topk(scores_BR, min(k, scores_BR.shape[1] - FIRST_ITEM_ROW), dim=1)
    return rows_BK.masked_fill(scores_BK.isneginf(), PADDING_ROW), scores_BK


def rank_over_shards(
    query_BD: Tensor, batch: EvaluationBatch, shards: Sequence[CandidatesShard], k: int
) -> Tensor:
    """Returns the int64 rows [B, K] that `rank_scores` finds without seen items, from sharded candidates.

    A collective call, each rank with users of its own.
    All ranks gather all queries, each finds the best of its own rows, and all gather the results.
    """
    world_size = dist.get_world_size()
    requests: list[Any] = [None] * world_size
    dist.all_gather_object(
        requests, (query_BD.cpu(), batch.excluded_row_X.cpu(), batch.excluded_item_X.cpu())
    )
    results: list[Any] = [None] * world_size
    dist.all_gather_object(
        results, [_rank_locally(query, user, item, shards, k) for query, user, item in requests]
    )
    own = [result[dist.get_rank()] for result in results]
    scores_BC, rows_BC = (torch.cat([values[part] for values in own], dim=1) for part in (0, 1))
    scores_BK, slot_BK = scores_BC.topk(min(k, scores_BC.shape[1]), dim=1)
    return rows_BC.gather(1, slot_BK).masked_fill(scores_BK.isneginf(), PADDING_ROW)


def _rank_locally(
    query_BD: Tensor,
    excluded_row_X: Tensor,
    excluded_item_X: Tensor,
    shards: Sequence[CandidatesShard],
    k: int,
) -> tuple[Tensor, Tensor]:
    """Returns scores and rows of the best candidates of this rank, [B, at most K of each shard]."""
    scores, rows = [query_BD.new_zeros(len(query_BD), 0)], [torch.zeros(len(query_BD), 0, dtype=torch.int64)]
    for first_row, candidates_SD in shards:
        scores_BS = (query_BD.to(candidates_SD.device) @ candidates_SD.T).float().cpu()
        scores_BS[:, : max(0, FIRST_ITEM_ROW - first_row)] = float("-inf")
        local_X = (excluded_item_X >= first_row) & (excluded_item_X < first_row + len(candidates_SD))
        scores_BS[excluded_row_X[local_X], excluded_item_X[local_X] - first_row] = float("-inf")
        best_BK, slot_BK = scores_BS.topk(min(k, len(candidates_SD)), dim=1)
        scores.append(best_BK)
        rows.append(slot_BK + first_row)
    return torch.cat(scores, dim=1), torch.cat(rows, dim=1)
