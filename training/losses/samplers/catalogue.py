"""Samplers whose distribution is known before training: uniform, Zipfian by rank, and by popularity.

Shape legend: R item rows (special rows included), I items, N negatives.
"""

import math

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.losses.samplers.base import CatalogueSampler, search


class UniformSampler(CatalogueSampler):
    """Draws every item with the same probability.

    Args:
        num_rows: item rows, special rows included.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        assert num_rows > FIRST_ITEM_ROW
        self._num_rows = num_rows

    def sample(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.randint(FIRST_ITEM_ROW, self._num_rows, (count,), generator=generator).to(device)

    def log_probability(self, rows: Tensor) -> Tensor:
        return torch.full(
            rows.shape, -math.log(self._num_rows - FIRST_ITEM_ROW), dtype=torch.float64, device=rows.device
        )


class LogUniformSampler(CatalogueSampler):
    """Zipf's law over popularity ranks: P(rank r) = log((r + 2) / (r + 1)) / log(I + 1), rank 0 being the
    most frequent item.

    Needs no counts but their order; ties are broken by item row.

    Args:
        counts_R: training events of each item row.
    """

    def __init__(self, counts_R: Tensor) -> None:
        super().__init__()
        assert len(counts_R) > FIRST_ITEM_ROW
        self._row_of_rank_I = (
            torch.argsort(counts_R[FIRST_ITEM_ROW:], descending=True, stable=True) + FIRST_ITEM_ROW
        )
        self._rank_R = torch.zeros(len(counts_R), dtype=torch.int64)
        self._rank_R[self._row_of_rank_I] = torch.arange(len(self._row_of_rank_I))
        self._log_total = math.log(len(self._row_of_rank_I) + 1)

    def sample(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        uniform_N = torch.rand(count, generator=generator, dtype=torch.float64)
        # The cumulative probability of ranks below r is log(r + 1) / log(I + 1); its inverse is rounded down.
        rank_N = torch.exp(uniform_N * self._log_total).floor().long() - 1
        self._row_of_rank_I = self._row_of_rank_I.to(device)
        return self._row_of_rank_I[rank_N.clamp(0, len(self._row_of_rank_I) - 1).to(device)]

    def log_probability(self, rows: Tensor) -> Tensor:
        self._rank_R = self._rank_R.to(rows.device)
        return torch.log(torch.log1p(1 / (self._rank_R[rows].double() + 1))) - math.log(self._log_total)


class PopularitySampler(CatalogueSampler):
    """Draws items in proportion to (count + 1) ** exponent, so that every item can be drawn.

    An exponent of 1 is how often items occur in training, 0 is uniform, 0.75 that of word2vec (Mikolov et
    al., 2013, "Distributed representations of words and phrases and their compositionality").

    Args:
        counts_R: training events of each item row.
        exponent: at least 0.
    """

    def __init__(self, counts_R: Tensor, exponent: float = 1.0) -> None:
        super().__init__()
        assert len(counts_R) > FIRST_ITEM_ROW
        weights_R = (counts_R.double() + 1.0) ** exponent
        weights_R[:FIRST_ITEM_ROW] = 0.0
        self._cumulative_R = weights_R.cumsum(0)
        self._log_probability_R = (weights_R / weights_R.sum()).log()

    def sample(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        self._cumulative_R = self._cumulative_R.to(device)
        return search(self._cumulative_R, count, generator)

    def log_probability(self, rows: Tensor) -> Tensor:
        self._log_probability_R = self._log_probability_R.to(rows.device)
        return self._log_probability_R[rows]
