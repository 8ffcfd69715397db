"""The sequence encoder: a transformer over item vectors, bidirectional or causal, that may know when each event happened.

Sequences are aligned to the right: the newest item is always in the last column, and positions count from the end. Attention
logits fall with distance by a slope of each head (as in ALiBi, here in both directions), without which a masked position
spends its first epochs learning where its neighbours are (docs/decisions.md has the figures).

Shape legend: B sequences, B1 = B + 1, L padded length, P positions wanted of each, D width, H heads, K = D / H, T tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.attention import AttentionBias, AttentionKernel, DenseAttention, FlexAttention
from training.model.dropout import Dropout
from training.model.layers import Block, TimeGap, norm, rotary_angles, time_buckets
from training.model.towers import QueryFeatureBatch, QueryTower
from training.model_config import ModelConfig

DIRECTIONS = {"past": 1, "both": 0, "future": -1}


class Times(NamedTuple):
    """When the events of padded sequences happened, in milliseconds; what stands in the padding has no effect."""

    query_BL: Tensor
    """int64: for what time each position asks. A causal position asks for the time of the item that comes next."""
    key_BL: Tensor
    """int64: when each item happened."""


class SequenceEncoder(nn.Module):
    """Item vectors in, contextual vectors out; has no table of its own, so that its ONNX file holds dense weights only.

    Args:
        config: shape of the encoder.
        causal: whether a position sees itself and older ones only.
        generator: draws the initial weights.
        num_event_types: kinds of events there are, where it is told of which kind each is (else 0).
    """

    def __init__(
        self,
        config: ModelConfig,
        generator: torch.Generator,
        *,
        causal: bool = False,
        num_event_types: int = 0,
    ) -> None:
        super().__init__()
        self.max_length = config.max_history if causal else config.max_history + 1
        self.causal = causal
        self.needs_times = config.time_bias or config.time_gap
        self.time_gap = TimeGap(config, causal=causal) if config.time_gap else None
        self.time_bias = config.time_bias
        self.flex = config.attention_kernel == "flex"
        self.slopes_H: Tensor
        self.register_buffer("slopes_H", torch.tensor(config.distance_slopes), persistent=False)
        self.direction_H: Tensor
        directions = ["past"] if causal else config.head_directions or ["both"]
        self.register_buffer(
            "direction_H", torch.tensor([DIRECTIONS[direction] for direction in directions]), persistent=False
        )
        self.position = (
            nn.Parameter(torch.empty(self.max_length, config.dim)) if config.positions == "learned" else None
        )
        self.angles_LK: Tensor | None
        self.register_buffer(
            "angles_LK",
            rotary_angles(self.max_length, config.dim // config.num_heads)
            if config.positions == "rotary"
            else None,
            persistent=False,
        )
        self.event_type = (
            nn.Parameter(torch.empty(num_event_types, config.dim)) if config.event_types else None
        )
        self.input_norm = norm(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.output_norm = norm(config)
        self.head = nn.Linear(config.dim, config.dim)
        for name, parameter in self.named_parameters():
            if name.endswith("time_table_NH"):
                continue
            if (
                parameter.ndim > 1
            ):  # what a layer puts out is as large as what it is given; tables of positions and gaps are added to items
                std = parameter.shape[1] ** -0.5 if name.endswith(".weight") else 0.02
                nn.init.trunc_normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        vectors_BLD: Tensor,
        mask_BL: Tensor,
        hidden_BL: Tensor | None = None,
        times: Times | None = None,
        dropout: Dropout | None = None,
        columns_BP: Tensor | None = None,
        event_types_BL: Tensor | None = None,
    ) -> Tensor:
        """Contextual vectors [B, L, D] of right-aligned sequences; `mask_BL` is bool, False in the padding on the left.

        Where `hidden_BL` (bool) is true, the item is to be told from the others: no other position attends to it, so that what
        surrounds a hidden item in training are items, as when serving.
        `dropout` is the noise of a training step; without it the result is exact. A row without any item gives numbers
        without meaning, never NaN, for a position always attends to itself. `event_types_BL` (int64) is what each event was; of a hidden
        one nothing is told. Where only the columns `columns_BP` are wanted, [B, P, D]:
        the last block then does no work for the others, which is half of it all when two blocks are asked for one position.
        """
        length = vectors_BLD.shape[1]
        visible_BL = mask_BL if hidden_BL is None else mask_BL & ~hidden_BL
        if self.position is not None:
            vectors_BLD = vectors_BLD + self.position[self.max_length - length :]
        if self.time_gap is not None:
            assert times is not None
            vectors_BLD = vectors_BLD + self.time_gap(times.query_BL, times.key_BL, mask_BL)
        if self.event_type is not None:
            assert event_types_BL is not None
            vectors_BLD = vectors_BLD + F.embedding(event_types_BL, self.event_type) * visible_BL[..., None]
        hidden_BLD = self.input_norm(vectors_BLD)
        if dropout:
            hidden_BLD = dropout(hidden_BLD)
        if self.blocks:
            attend = self._attend(visible_BL, times)
            angles_LK = None if self.angles_LK is None else self.angles_LK[self.max_length - length :]
            for number, block in enumerate(self.blocks, start=1):
                wanted_BP = columns_BP if number == len(self.blocks) else None
                hidden_BLD = block(hidden_BLD, wanted_BP, attend, angles_LK, dropout)
        else:
            hidden_BLD = _pooled(hidden_BLD, mask_BL, columns_BP)
        queries_BPD: Tensor = self.head(self.output_norm(hidden_BLD))
        return queries_BPD

    def _attend(self, visible_BL: Tensor, times: Times | None) -> AttentionKernel:
        buckets_BLL = None
        if self.time_bias:
            assert times is not None
            buckets_BLL = time_buckets(times.query_BL[:, :, None] - times.key_BL[:, None, :])
        preferences = AttentionBias(visible_BL, self.slopes_H, self.direction_H, buckets_BLL)
        return (
            FlexAttention(preferences)
            if self.flex and visible_BL.device.type == "cuda"
            else DenseAttention(preferences)
        )


def _pooled(vectors_BLD: Tensor, mask_BL: Tensor, columns_BP: Tensor | None) -> Tensor:
    """The mean of what each position sees, instead of attention."""
    mask_BL1 = mask_BL[..., None].to(vectors_BLD.dtype)
    sums_BLD, counts_BL1 = (vectors_BLD * mask_BL1).cumsum(1), mask_BL1.cumsum(1)
    means_BLD = sums_BLD / counts_BL1.clamp_min(1.0)
    return (
        means_BLD
        if columns_BP is None
        else means_BLD.gather(1, columns_BP[..., None].expand(-1, -1, means_BLD.shape[-1]))
    )


class QueryEncoder(nn.Module):
    """What is exported: the history's item vectors and what is known beside them in, the vector of the item to come out.

    A bidirectional encoder reads it from a mask vector appended after the newest item, a causal one from the newest item.

    Args:
        encoder: of histories.
        mask_vector_D: what a bidirectional one is asked with.
        tower: what adds features and the clock, where a recipe wants them.
        widths: columns of each input of features (`QueryEncoding.widths`); further ones are not read.
        l2_normalize: whether queries have length 1.
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

    def forward(
        self,
        item_vectors: Tensor,
        mask: Tensor,
        event_types: Tensor,
        timestamps_ms: Tensor,
        query_timestamp_ms: Tensor,
        user_codes: Tensor,
        user_numbers: Tensor,
        context_codes: Tensor,
        context_numbers: Tensor,
    ) -> Tensor:
        """The vector [batch, D] of the item to come. An encoder looks at those of its inputs that it was trained with.

        Args:
            item_vectors: float32 [batch, length, D], right-aligned.
            mask: bool [batch, length], False in the padding on the left.
            event_types: int64 [batch, length], what each event was.
            timestamps_ms: int64 [batch, length], when each event happened.
            query_timestamp_ms: int64 [batch, 1], the time of the request.
            user_codes: int64 [batch, at least S], and so on: `QueryFeatureBatch`.
        """
        hidden = None
        if self.mask_vector_D is not None:
            item_vectors = torch.cat(
                [item_vectors, self.mask_vector_D.expand(item_vectors.shape[0], 1, -1)], dim=1
            )
            newest = torch.ones_like(mask[:, :1])
            hidden = torch.cat([torch.zeros_like(mask), newest], dim=1)
            mask = torch.cat([mask, newest], dim=1)
            event_types = torch.cat([event_types, torch.zeros_like(event_types[:, :1])], dim=1)
        times = serving_times(timestamps_ms, query_timestamp_ms, causal=self.encoder.causal)
        newest_B1 = torch.full_like(query_timestamp_ms, mask.shape[1] - 1)
        query_B1D: Tensor = self.encoder(
            item_vectors, mask, hidden, times, columns_BP=newest_B1, event_types_BL=event_types
        )
        given = QueryFeatureBatch(user_codes, user_numbers, context_codes, context_numbers)
        facts = QueryFeatureBatch(
            *(
                values[:, : self.widths[name]]
                for name, values in zip(QueryFeatureBatch._fields, given, strict=True)
            )
        )
        return finished_query(
            query_B1D[:, 0], self.tower, facts, query_timestamp_ms[:, 0], l2_normalize=self.l2_normalize
        )


def finished_query(
    history_ND: Tensor,
    tower: QueryTower | None,
    facts: QueryFeatureBatch | None,
    time_ms_N: Tensor,
    *,
    l2_normalize: bool,
) -> Tensor:
    """What the encoder makes of histories, with what is known beside them, [N, D]; of length 1 if so wished."""
    if tower is not None:
        assert facts is not None
        history_ND = tower(history_ND, facts, time_ms_N)
    return F.normalize(history_ND, dim=-1) if l2_normalize else history_ND


def serving_times(timestamps_ms_BL: Tensor, request_timestamp_ms_B1: Tensor, *, causal: bool) -> Times:
    """Times of histories to be continued at a given time: of the items when causal, else of the items and the mask after them."""
    with_request_BL = torch.cat([timestamps_ms_BL, request_timestamp_ms_B1], dim=1)
    return (
        Times(with_request_BL[:, 1:], timestamps_ms_BL) if causal else Times(with_request_BL, with_request_BL)
    )
