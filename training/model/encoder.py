"""The sequence encoder: a bidirectional or causal transformer over item vectors, and optionally times.

Sequences are right-aligned: the newest item is in the last column, and positions count from the end.
Attention logits fall with distance by a slope of each head (as in ALiBi, here in both directions).
Without that, a masked position spends its first epochs learning where its neighbours are
(docs/decisions.md has the figures).

Shape legend: B sequences, L padded length, P requested columns of each, D width, H heads, K = D / H.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.attention import (
    AttentionBias,
    AttentionKernel,
    DenseAttention,
    FlexAttention,
    take_columns,
)
from training.model.dropout import Dropout
from training.model.layers import Block, TimeGap, norm, rotary_angles, time_buckets
from training.model_config import ModelConfig

DIRECTIONS = {"past": 1, "both": 0, "future": -1}


class Times(NamedTuple):
    """Times of the positions of padded sequences in milliseconds; values in the padding have no effect."""

    query_BL: Tensor
    """int64 time for which a position predicts: of the next item where the encoder is causal."""
    key_BL: Tensor
    """int64 time of the event."""


class SequenceEncoder(nn.Module):
    """Maps item vectors to contextual vectors.

    It owns no item table, so that its ONNX file holds dense weights only.

    Args:
        config: shape of the encoder.
        generator: draws the initial weights.
        causal: whether a position attends to itself and older ones only.
        num_event_types: event types of the dataset, for a recipe with `model.event_types`.
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
        self._initialize(generator)

    def _initialize(self, generator: torch.Generator) -> None:
        """Draws all weights but those of time biases, which start at zero.

        Matrices of layers keep the scale of their input.
        Tables of positions, gaps and event types start small, for they are added to item vectors.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("time_table_NH"):
                continue
            if parameter.ndim > 1:
                std = parameter.shape[1] ** -0.5 if name.endswith(".weight") else 0.02
                nn.init.trunc_normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        vectors_BLD: Tensor,
        mask_BL: Tensor,
        masked_BL: Tensor | None = None,
        times: Times | None = None,
        dropout: Dropout | None = None,
        columns_BP: Tensor | None = None,
        event_types_BL: Tensor | None = None,
    ) -> Tensor:
        """Returns contextual vectors [B, L, D] of right-aligned sequences, or [B, P, D] of requested columns.

        A position always attends to itself, so a row without items gives meaningless but finite numbers.

        Args:
            vectors_BLD: item vectors.
            mask_BL: bool, False in the padding on the left.
            masked_BL: bool, True where the item is masked.
                No other position attends to a masked one, so positions attend to items alone, as in serving.
            times: needed where `needs_times`.
            dropout: the noise of a training step; None: no noise.
            columns_BP: int64 columns to return; None: all.
                The last block does no work for others, which halves the work of two blocks.
            event_types_BL: int64 event types, which have no effect on masked items.
        """
        length = vectors_BLD.shape[1]
        visible_BL = mask_BL if masked_BL is None else mask_BL & ~masked_BL
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
            kernel = self._attention_kernel(visible_BL, times)
            angles_LK = None if self.angles_LK is None else self.angles_LK[self.max_length - length :]
            for number, block in enumerate(self.blocks, start=1):
                block_columns_BP = columns_BP if number == len(self.blocks) else None
                hidden_BLD = block(hidden_BLD, block_columns_BP, kernel, angles_LK, dropout)
        else:
            hidden_BLD = _running_mean(hidden_BLD, mask_BL, columns_BP)
        queries_BPD: Tensor = self.head(self.output_norm(hidden_BLD))
        return queries_BPD

    def _attention_kernel(self, visible_BL: Tensor, times: Times | None) -> AttentionKernel:
        buckets_BLL = None
        if self.time_bias:
            assert times is not None
            buckets_BLL = time_buckets(times.query_BL[:, :, None] - times.key_BL[:, None, :])
        bias = AttentionBias(visible_BL, self.slopes_H, self.direction_H, buckets_BLL)
        return FlexAttention(bias) if self.flex and visible_BL.device.type == "cuda" else DenseAttention(bias)


def _running_mean(vectors_BLD: Tensor, mask_BL: Tensor, columns_BP: Tensor | None) -> Tensor:
    """Returns the mean of the vectors up to each position, for an encoder without blocks."""
    mask_BL1 = mask_BL[..., None].to(vectors_BLD.dtype)
    sums_BLD, counts_BL1 = (vectors_BLD * mask_BL1).cumsum(1), mask_BL1.cumsum(1)
    means_BLD = sums_BLD / counts_BL1.clamp_min(1.0)
    return means_BLD if columns_BP is None else take_columns(means_BLD, columns_BP)
