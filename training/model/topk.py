"""Exact top-k over the whole catalogue for a batch of users.

Shape legend: B users, R item rows (special rows included), S rows of a shard, K ranked items, C candidates of all shards.
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
    """int64 rows and scores [B, K] of the k best items of given scores, in which those left out are set to -inf.

    Special rows and, by default, seen items are left out. Where fewer than k items remain, the last rows are 0 (padding) with
    score -inf.
    """
    scores_BR[:, :FIRST_ITEM_ROW] = float("-inf")
    if exclude_seen:
        scores_BR[batch.excluded_row_X, batch.excluded_item_X] = float("-inf")
    scores_BK, rows_BK = torch.topk(scores_BR, min(k, scores_BR.shape[1] - FIRST_ITEM_ROW), dim=1)
    return rows_BK.masked_fill(scores_BK.isneginf(), PADDING_ROW), scores_BK


def rank_over_shards(
    query_BD: Tensor, batch: EvaluationBatch, shards: Sequence[CandidatesShard], k: int
) -> Tensor:
    """int64 rows [B, K] as `rank_scores` finds them, seen items left out, where each rank has vectors of some rows alone.

    Every rank must ask, each with users of its own: queries go round, each rank finds the best among its rows, and those come back.
    """
    world_size = dist.get_world_size()
    asked: list[Any] = [None] * world_size
    dist.all_gather_object(asked, (query_BD.cpu(), batch.excluded_row_X.cpu(), batch.excluded_item_X.cpu()))
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, [_best_here(query, user, item, shards, k) for query, user, item in asked])
    mine = [of_rank[dist.get_rank()] for of_rank in found]
    scores_BC, rows_BC = (torch.cat([answer[part] for answer in mine], dim=1) for part in (0, 1))
    scores_BK, place_BK = scores_BC.topk(min(k, scores_BC.shape[1]), dim=1)
    return rows_BC.gather(1, place_BK).masked_fill(scores_BK.isneginf(), PADDING_ROW)


def _best_here(
    query_BD: Tensor,
    excluded_row_X: Tensor,
    excluded_item_X: Tensor,
    shards: Sequence[CandidatesShard],
    k: int,
) -> tuple[Tensor, Tensor]:
    """Scores and rows [B, at most K a shard] of the best of some shards."""
    scores, rows = [query_BD.new_zeros(len(query_BD), 0)], [torch.zeros(len(query_BD), 0, dtype=torch.int64)]
    for first_row, candidates_SD in shards:
        scores_BS = (query_BD.to(candidates_SD.device) @ candidates_SD.T).float().cpu()
        scores_BS[:, : max(0, FIRST_ITEM_ROW - first_row)] = float("-inf")
        here_X = (excluded_item_X >= first_row) & (excluded_item_X < first_row + len(candidates_SD))
        scores_BS[excluded_row_X[here_X], excluded_item_X[here_X] - first_row] = float("-inf")
        best_BK, place_BK = scores_BS.topk(min(k, len(candidates_SD)), dim=1)
        scores.append(best_BK)
        rows.append(place_BK + first_row)
    return torch.cat(scores, dim=1), torch.cat(rows, dim=1)
