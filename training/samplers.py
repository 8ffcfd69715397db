"""Where shared negatives come from, and the true log-probability of each draw.

Shape legend: R item rows (special rows included), N negatives.
"""

from typing import Protocol

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW


class Sampler(Protocol):
    """Draws negatives with replacement from a fixed distribution over item rows."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 [count] item rows; never a special row."""
        ...

    def log_probability(self, rows: Tensor) -> Tensor:
        """float32 log-probability that one draw gives each of these rows."""
        ...


class UniformSampler:
    """Every item alike."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._log_probability = -float(torch.log(torch.tensor(float(num_rows - FIRST_ITEM_ROW))))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(FIRST_ITEM_ROW, self._num_rows, (count,), generator=generator)

    def log_probability(self, rows: Tensor) -> Tensor:
        return torch.full(rows.shape, self._log_probability, device=rows.device)


class PopularitySampler:
    """Items in proportion to their count plus one, so that every item has a chance."""

    def __init__(self, counts_R: Tensor) -> None:
        weights_R = counts_R.double() + 1.0
        weights_R[:FIRST_ITEM_ROW] = 0.0
        cumulative_R = weights_R.cumsum(0)
        self._cumulative_R = cumulative_R / cumulative_R[-1]
        self._log_probability_R = (weights_R / weights_R.sum()).log().float()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        uniform_N = torch.rand(count, generator=generator, dtype=torch.float64)
        rows_N = torch.searchsorted(self._cumulative_R, uniform_N, right=True)
        return rows_N.clamp_max(len(self._cumulative_R) - 1)

    def log_probability(self, rows: Tensor) -> Tensor:
        return self._log_probability_R.to(rows.device)[rows]
