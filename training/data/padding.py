"""Ragged rows as padded tensors whose newest element is in the last column, and the columns of selected
elements.

Shape legend: B rows, B1 = B + 1, L padded length, T tokens, M selected tokens, P selected columns of each
row.
"""

import torch
from torch import Tensor


def pad_right_aligned(items_T: Tensor, offsets_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pads ragged rows to one length, with the newest item in the last column.

    Returns:
        items_BL: int64, 0 in the padding on the left.
        row_T, column_T: int64, the cell of each token.
    """
    lengths_B = offsets_B1.diff()
    length = int(lengths_B.max())
    row_T = torch.repeat_interleave(
        torch.arange(len(lengths_B), device=items_T.device), lengths_B, output_size=len(items_T)
    )
    column_T = torch.arange(len(items_T), device=items_T.device) - offsets_B1[1:][row_T] + length
    return scatter(items_T, row_T, column_T, items_T.new_zeros((len(lengths_B), length))), row_T, column_T


def scatter(values_T: Tensor, row_T: Tensor, column_T: Tensor, like_BL: Tensor) -> Tensor:
    """Returns a [B, L] tensor with the value of each token in its cell, and 0 elsewhere."""
    return torch.zeros_like(like_BL, dtype=values_T.dtype).index_put_((row_T, column_T), values_T)


def columns_of_rows(row_M: Tensor, column_M: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Groups cells, sorted by row, into the columns of each row.

    Returns:
        columns_BP: int64; rows with fewer than P cells repeat column 0.
        slot_M: int64, the index of each cell among those of its row.
    """
    count_B = torch.bincount(row_M, minlength=num_rows)
    slot_M = torch.arange(len(row_M), device=row_M.device) - (count_B.cumsum(0) - count_B)[row_M]
    columns_BP = torch.zeros(num_rows, int(count_B.max()), dtype=column_M.dtype, device=column_M.device)
    return columns_BP.index_put_((row_M, slot_M), column_M), slot_M
