"""Histories made by hand."""

import torch
from torch import Tensor

from training.data.evaluation_batches import Histories


def untimed(items_BL: Tensor) -> Histories:
    """Returns histories of unknown users for a model without times, from right-aligned item rows."""
    zeros_BL, unknown_B = torch.zeros_like(items_BL), torch.full((len(items_BL),), -1)
    return Histories(
        items_BL, zeros_BL, torch.zeros(len(items_BL), 1, dtype=torch.int64), zeros_BL, unknown_B, unknown_B
    )
