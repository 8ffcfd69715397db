"""The tokens of a training step as padded sequences, and the cells where targets are predicted.

Shape legend: B sequences, L padded length, M target positions, P columns with targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.batches import Batch
from training.data.padding import columns_of_rows, pad_right_aligned, scatter
from training.model.encoder import SequenceEncoder, Times


@dataclass(frozen=True)
class PaddedBatch:
    """Right-aligned sequences of a step."""

    items_BL: Tensor
    """int64 item rows, 0 in the padding."""
    times: Times | None
    """None for an encoder that does not use them."""
    event_types_BL: Tensor | None
    """int64, 0 in the padding; None for an encoder that does not use them."""
    token_BL: Tensor
    """int64 number of each token in the step, the same for any number of ranks and any padding."""
    row_M: Tensor
    """int64 sequence of each target."""
    columns_BP: Tensor | None
    """int64 columns to encode.

    None: all, since almost every position of a causal encoder predicts a target.
    """
    slot_M: Tensor
    """int64 index of each target among the encoded columns of its sequence."""


def pad_batch(batch: Batch, encoder: SequenceEncoder) -> PaddedBatch:
    """Returns the padded sequences of a batch with what the encoder uses of them."""
    items_BL, row_T, column_T = pad_right_aligned(batch.items_T, batch.offsets_B1)
    times, event_types_BL, columns_BP = None, None, None
    if encoder.needs_times:
        query_BL = scatter(batch.query_times_ms_T, row_T, column_T, items_BL)
        times = Times(query_BL, scatter(batch.key_times_ms_T, row_T, column_T, items_BL))
    if encoder.event_type is not None:
        event_types_BL = scatter(batch.event_types_T, row_T, column_T, items_BL)
    row_M, slot_M = row_T[batch.target_positions_M], column_T[batch.target_positions_M]
    if not encoder.causal:
        columns_BP, slot_M = columns_of_rows(row_M, slot_M, len(items_BL))
    from_end_L = torch.arange(items_BL.shape[1], 0, -1, device=items_BL.device)
    token_BL = batch.windows_B[:, None] * encoder.max_length + from_end_L
    return PaddedBatch(items_BL, times, event_types_BL, token_BL, row_M, columns_BP, slot_M)
