"""Negatives that are the targets of the step itself, alone or mixed with uniform ones.

Shape legend: M target positions of this rank, G positions whose targets are in the pool, S negatives taken from the pool,
N negatives.
"""

import math

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.samplers.base import Negatives, Sampler
from training.samplers.catalogue import UniformSampler
from training.samplers.ranks import gather_rows
from training.samplers.streaming import Frequency


class InBatchSampler(Sampler):
    """Targets of the step, each as often as it is there, at most `count` of them, without replacement.

    Targets of different positions are draws from the frequency q of targets. Repetitions are kept: a target that is there twice is
    two draws, and the correction by q is that of draws. One of the G targets of the pool is the position's own, which its loss
    leaves out; so each negative gives a row other than the own target with probability q (1 - 1 / G), which is what is reported.
    It is the true one for a step that is yet to come; the targets of one user's history depend on each other.

    Args:
        frequency: q; one that learns is asked before it is shown the step, or it would favour what is there.
        gather: the pool has the targets of all ranks, and is the same on each; otherwise a rank has its own.
    """

    def __init__(self, frequency: Frequency, *, gather: bool) -> None:
        super().__init__()
        self.frequency = frequency
        self._gather = gather

    def draw(self, count: int, target_rows_M: Tensor, generator: torch.Generator) -> Negatives:
        pool_G, rows_S = self._take(count, target_rows_M, generator)
        frequency_S = self.frequency.log_probability(rows_S)
        assert not frequency_S.isneginf().any(), "a target of which the counts know nothing"
        log_probability_S = frequency_S + _log_share_of_others(len(pool_G))
        self._observe(target_rows_M, pool_G)
        return Negatives(rows_S, log_probability_S)

    def _take(self, count: int, target_rows_M: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The pool, and `count` of it."""
        pool_G = gather_rows(target_rows_M) if self._gather else target_rows_M
        if len(pool_G) <= count:
            return pool_G, pool_G
        return pool_G, pool_G[torch.randperm(len(pool_G), generator=generator)[:count].to(pool_G.device)]

    def _observe(self, target_rows_M: Tensor, pool_G: Tensor) -> None:
        if self.frequency.learns:
            self.frequency.observe(pool_G if self._gather else gather_rows(target_rows_M))


class MixedSampler(InBatchSampler):
    """A share from the targets of the step, the rest uniform from the catalogue.

    Numbers are fixed (S in-batch, N - S uniform), and each draw is reported with the probability of the mixture, wherever it came
    from: S / N q (1 - 1 / G) + (1 - S / N) / I. This is Veach and Guibas' balance heuristic (1995, "Optimally combining sampling
    techniques for Monte Carlo rendering"), unbiased as the mixture itself and of less variance. Items that are never targets get
    gradients, too (Yang et al., 2020, "Mixed negative sampling for learning two-tower neural networks in recommendations").

    Args:
        num_rows: item rows, special rows included.
        in_batch_share: S / N, rounded to whole negatives; fewer where the step has fewer targets.
    """

    def __init__(self, frequency: Frequency, num_rows: int, in_batch_share: float, *, gather: bool) -> None:
        super().__init__(frequency, gather=gather)
        self._uniform = UniformSampler(num_rows)
        self._num_items = num_rows - FIRST_ITEM_ROW
        self._in_batch_share = in_batch_share

    def draw(self, count: int, target_rows_M: Tensor, generator: torch.Generator) -> Negatives:
        pool_G, rows_S = self._take(round(count * self._in_batch_share), target_rows_M, generator)
        num_uniform = count - len(rows_S)
        rows_N = torch.cat([rows_S, self._uniform.sample(num_uniform, generator, rows_S.device)])
        in_batch_N = self.frequency.log_probability(rows_N) + _log_share_of_others(len(pool_G)) + _log(len(rows_S) / count)
        uniform_N = self._uniform.log_probability(rows_N) + _log(num_uniform / count)
        self._observe(target_rows_M, pool_G)
        return Negatives(rows_N, torch.logaddexp(in_batch_N, uniform_N))


def _log_share_of_others(pool_size: int) -> float:
    """log(1 - 1 / G). Of a pool of one target nothing remains but what the loss leaves out: any finite number will do."""
    return math.log1p(-1 / pool_size) if pool_size > 1 else 0.0


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
