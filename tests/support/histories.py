"""Histories made by hand."""

import torch
from torch import Tensor

from training.data.evaluation_batches import Histories


def untimed(items_BL: Tensor) -> Histories:
    """Right-aligned item rows, for a model that does not look at times; of nobody that is known."""
    zeros_BL, nobody_B = torch.zeros_like(items_BL), torch.full((len(items_BL),), -1)
    return Histories(
        items_BL, zeros_BL, torch.zeros(len(items_BL), 1, dtype=torch.int64), zeros_BL, nobody_B, nobody_B
    )
