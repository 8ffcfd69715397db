"""The query encoder: maps a history, and features of the user and the request, to a query.

Shape legend: B queries, L padded length, D width, N queries of a training step or a batch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.encoder import SequenceEncoder, Times
from training.model.towers import QueryFeatureBatch, QueryTower


class HistoryInputs(NamedTuple):
    """Histories and the time of each request, named as the inputs of the ONNX file.

    An encoder reads those that it was trained with.
    """

    item_vectors: Tensor
    """float32 [B, L, D], right-aligned."""
    mask: Tensor
    """bool [B, L], False in the padding on the left."""
    event_types: Tensor
    """int64 [B, L]."""
    timestamps_ms: Tensor
    """int64 [B, L], times of the events."""
    query_timestamp_ms: Tensor
    """int64 [B, 1], the time of the request."""


class QueryEncoder(nn.Module):
    """The exported network.

    Args:
        encoder: of histories.
        mask_vector_D: item vector of the mask, which a bidirectional encoder finds after the newest item.
        tower: adds features and the time of the request, for a recipe with such features.
        widths: columns that the network reads of each input of features (`QueryEncoding.widths`).
        l2_normalize: whether queries have unit length.
    """

    def __init__(
        self,
        encoder: SequenceEncoder,
        mask_vector_D: Tensor,
        tower: QueryTower | None,
        widths: Mapping[str, int],
        *,
        l2_normalize: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_vector_D = None if encoder.causal else nn.Parameter(mask_vector_D.detach().clone())
        self.tower = tower
        self.widths = dict(widths)
        self.l2_normalize = l2_normalize

    def forward(self, history: HistoryInputs, features: QueryFeatureBatch) -> Tensor:
        """Returns the vector [B, D] of the next item; columns of features beyond `widths` are ignored."""
        features = QueryFeatureBatch(
            *(
                values[:, : self.widths[name]]
                for name, values in zip(QueryFeatureBatch._fields, features, strict=True)
            )
        )
        history_BD = encode_next(self.encoder, history, self.mask_vector_D)
        time_ms_B = history.query_timestamp_ms[:, 0]
        return finish_query(history_BD, self.tower, features, time_ms_B, l2_normalize=self.l2_normalize)


def encode_next(encoder: SequenceEncoder, history: HistoryInputs, mask_vector_D: Tensor | None) -> Tensor:
    """Returns the contextual vector [B, D] that predicts the item after each history.

    A bidirectional encoder predicts at a mask after the newest item, a causal one at the newest item.

    Args:
        mask_vector_D: item vector of the mask; unused by a causal encoder.
    """
    item_vectors, mask, event_types, timestamps_ms, query_timestamp_ms = history
    masked = None
    if not encoder.causal:
        assert mask_vector_D is not None
        item_vectors = torch.cat([item_vectors, mask_vector_D.expand(item_vectors.shape[0], 1, -1)], dim=1)
        newest = torch.ones_like(mask[:, :1])
        masked = torch.cat([torch.zeros_like(mask), newest], dim=1)
        mask = torch.cat([mask, newest], dim=1)
        event_types = torch.cat([event_types, torch.zeros_like(event_types[:, :1])], dim=1)
    times = _request_times(timestamps_ms, query_timestamp_ms, causal=encoder.causal)
    newest_B1 = torch.full_like(query_timestamp_ms, mask.shape[1] - 1)
    query_B1D: Tensor = encoder(
        item_vectors, mask, masked, times, columns_BP=newest_B1, event_types_BL=event_types
    )
    return query_B1D[:, 0]


def finish_query(
    history_ND: Tensor,
    tower: QueryTower | None,
    features: QueryFeatureBatch | None,
    time_ms_N: Tensor,
    *,
    l2_normalize: bool,
) -> Tensor:
    """Returns queries [N, D]: contextual vectors, corrected by the query tower where there is one.

    Args:
        features: needed with a tower.
        time_ms_N: int64 times of the requests.
        l2_normalize: whether queries have unit length.
    """
    if tower is not None:
        assert features is not None
        history_ND = tower(history_ND, features, time_ms_N)
    return F.normalize(history_ND, dim=-1) if l2_normalize else history_ND


def _request_times(timestamps_ms_BL: Tensor, request_ms_B1: Tensor, *, causal: bool) -> Times:
    """Returns times of the items for a causal encoder, else of the items and the mask after them."""
    with_request_BL = torch.cat([timestamps_ms_BL, request_ms_B1], dim=1)
    return (
        Times(with_request_BL[:, 1:], timestamps_ms_BL) if causal else Times(with_request_BL, with_request_BL)
    )
