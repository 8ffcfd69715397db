"""The sequence encoder: a pre-norm bidirectional transformer over item vectors.

Sequences are aligned to the right: the newest item is always in the last column, and positions count from the end. Attention
logits fall with distance by a slope of each head (as in ALiBi, Press et al., 2022, here in both directions), without which
a masked position spends its first epochs learning where its neighbours are (docs/decisions.md has the figures).

Shape legend: B sequences, B1 = B + 1, L padded length, D width, H heads, K = D / H, T tokens, M positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ModelConfig
from training.dropout import Dropout


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a layer norm and beside a residual path."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.attention_out = nn.Linear(config.dim, config.dim)
        self.feedforward_norm = nn.LayerNorm(config.dim)
        self.feedforward_in = nn.Linear(config.dim, config.feedforward_multiple * config.dim)
        self.feedforward_out = nn.Linear(config.feedforward_multiple * config.dim, config.dim)

    def forward(self, hidden_BLD: Tensor, bias_BHLL: Tensor, dropout: Dropout | None) -> Tensor:
        """Each position attends to every other; `bias_BHLL` is added to the attention logits (-inf forbids)."""
        projected_BL3HK = self.query_key_value(self.attention_norm(hidden_BLD)).unflatten(-1, (3, self.num_heads, -1))
        query_BHLK, key_BHLK, value_BHLK = projected_BL3HK.permute(2, 0, 3, 1, 4).unbind(0)
        attended_BHLK = F.scaled_dot_product_attention(query_BHLK, key_BHLK, value_BHLK, attn_mask=bias_BHLL)
        attended_BLD = attended_BHLK.transpose(1, 2).flatten(-2)
        attended_BLD = self.attention_out(attended_BLD)
        hidden_BLD = hidden_BLD + (dropout(attended_BLD) if dropout else attended_BLD)
        wide_BLF = F.gelu(self.feedforward_in(self.feedforward_norm(hidden_BLD)))
        fed_BLD = self.feedforward_out(wide_BLF)
        return hidden_BLD + (dropout(fed_BLD) if dropout else fed_BLD)


class SequenceEncoder(nn.Module):
    """Item vectors in, contextual vectors out; has no table of its own, so that its ONNX file holds dense weights only.

    Args:
        config: shape of the encoder.
        generator: draws the initial weights.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.max_length = config.max_history + 1
        self.slopes_H: Tensor
        self.register_buffer("slopes_H", torch.tensor(config.distance_slopes), persistent=False)
        self.position = nn.Parameter(torch.empty(self.max_length, config.dim))
        self.input_norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.output_norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.dim)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Contextual vectors [B, L, D] of right-aligned sequences; `mask_BL` is bool, False in the padding on the left.

        `dropout` is the noise of a training step; without it the result is exact. A row without any item gives numbers
        without meaning, never NaN: its last column is attended to.
        """
        length = vectors_BLD.shape[1]
        mask_BL = torch.cat([mask_BL[:, :-1], torch.ones_like(mask_BL[:, -1:])], dim=1)
        hidden_BLD = self.input_norm(vectors_BLD + self.position[self.max_length - length :])
        if dropout:
            hidden_BLD = dropout(hidden_BLD)
        bias_BHLL = self._attention_bias(mask_BL)
        for block in self.blocks:
            hidden_BLD = block(hidden_BLD, bias_BHLL, dropout)
        queries_BLD: Tensor = self.head(self.output_norm(hidden_BLD))
        return queries_BLD

    def _attention_bias(self, mask_BL: Tensor) -> Tensor:
        """-inf on padding, elsewhere minus the distance times the slope of the head."""
        position_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        distance_LL = (position_L[:, None] - position_L[None, :]).abs()
        bias_HLL = -self.slopes_H[:, None, None] * distance_LL
        return torch.where(mask_BL[:, None, None, :], bias_HLL, float("-inf"))


class QueryEncoder(nn.Module):
    """What is exported: the history's item vectors in, the vector of the item to come out.

    Appends the mask vector after the newest item and reads the encoder there.
    """

    def __init__(self, encoder: SequenceEncoder, mask_vector_D: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_vector_D = nn.Parameter(mask_vector_D.detach().clone())

    def forward(self, item_vectors: Tensor, mask: Tensor) -> Tensor:
        """float32 [batch, length, D] and bool [batch, length], right-aligned, to float32 query [batch, D]."""
        mask_vector_B1D = self.mask_vector_D.expand(item_vectors.shape[0], 1, -1)
        vectors_BLD = torch.cat([item_vectors, mask_vector_B1D], dim=1)
        mask_BL = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return self.encoder(vectors_BLD, mask_BL)[:, -1]


def pad_right_aligned(items_T: Tensor, offsets_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged rows to a padded [B, L] with the newest item in the last column.

    Returns:
        items_BL int64 (0 is padding), and the row and the column of each token, int64 [T].
    """
    lengths_B = offsets_B1.diff()
    length = int(lengths_B.max())
    row_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=items_T.device), lengths_B, output_size=len(items_T))
    column_T = torch.arange(len(items_T), device=items_T.device) - offsets_B1[1:][row_T] + length
    items_BL = items_T.new_zeros((len(lengths_B), length))
    items_BL[row_T, column_T] = items_T
    return items_BL, row_T, column_T
