"""Negatives that are the targets of the step itself, alone or mixed with uniform ones.

Shape legend: M target positions of this rank, G positions whose targets are in the pool, S draws, N negatives of each, C of them
from the pool.
"""

import math

import torch
from torch import Tensor

from training.samplers.base import Negatives, Sampler
from training.samplers.catalogue import UniformSampler
from training.samplers.ranks import gather_rows
from training.samplers.streaming import Frequency


class InBatchSampler(Sampler):
    """Targets of the step, each as often as it is there; a draw takes at most `num_negatives` of them, without replacement, from what
    draws before it have left as long as that is enough. Where it takes all of them there is one draw.

    Targets of different positions come from the frequency q of targets. Repetitions are kept, and the correction by q counts them: a
    target that is there twice has come twice. One of the G targets of the pool is the position's own, which its loss leaves out; so
    a negative is a row other than the own target with probability q (1 - 1 / G), which is what is reported. It is the true one for a
    step that is yet to come; the targets of one user's history depend on each other.

    Args:
        frequency: q; one that learns is asked before it is shown the step, or it would favour what is there.
        gather: the pool has the targets of all ranks, and is the same on each; otherwise a rank has its own.
    """

    def __init__(self, frequency: Frequency, *, gather: bool) -> None:
        super().__init__()
        self.frequency = frequency
        self._gather = gather

    def draw(self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator) -> Negatives:
        pool_G, rows_SN = self._take(num_draws, num_negatives, target_rows_M, generator)
        others = _log_share_of_others(len(pool_G))

        def log_probability(rows: Tensor) -> Tensor:
            return self.frequency.log_probability(rows) + others

        negatives = Negatives.with_probabilities(rows_SN, target_rows_M, log_probability, independent=False)
        self._observe(target_rows_M, pool_G)
        return negatives

    def _take(self, num_draws: int, count: int, target_rows_M: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The pool, and for each draw `count` of it, or all."""
        pool_G = gather_rows(target_rows_M) if self._gather else target_rows_M
        if len(pool_G) <= count:
            return pool_G, pool_G[None]
        at_once = min(num_draws, len(pool_G) // max(1, count))
        rounds = -(-num_draws // at_once)
        places_SC = torch.stack([torch.randperm(len(pool_G), generator=generator)[: at_once * count] for _ in range(rounds)])
        return pool_G, pool_G[places_SC.view(rounds * at_once, count)[:num_draws].to(pool_G.device)]

    def _observe(self, target_rows_M: Tensor, pool_G: Tensor) -> None:
        if self.frequency.learns:
            self.frequency.observe(pool_G if self._gather else gather_rows(target_rows_M))


class MixedSampler(InBatchSampler):
    """A share from the targets of the step, the rest uniform from the catalogue.

    Numbers are fixed (C in-batch, N - C uniform), and each negative is reported with the probability of the mixture, wherever it came
    from: C / N q (1 - 1 / G) + (1 - C / N) / I. This is Veach and Guibas' balance heuristic (1995, "Optimally combining sampling
    techniques for Monte Carlo rendering"), unbiased as the mixture itself and of less variance. Items that are never targets get
    gradients, too (Yang et al., 2020, "Mixed negative sampling for learning two-tower neural networks in recommendations").

    Args:
        num_rows: item rows, special rows included.
        in_batch_share: C / N, rounded to whole negatives; fewer where the step has fewer targets.
    """

    def __init__(self, frequency: Frequency, num_rows: int, in_batch_share: float, *, gather: bool) -> None:
        super().__init__(frequency, gather=gather)
        self._uniform = UniformSampler(num_rows)
        self._in_batch_share = in_batch_share

    def draw(self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator) -> Negatives:
        pool_G, rows_SC = self._take(num_draws, round(num_negatives * self._in_batch_share), target_rows_M, generator)
        num_uniform = num_negatives - rows_SC.shape[1]
        uniform_rows = self._uniform.sample(num_draws * num_uniform, generator, rows_SC.device).view(num_draws, num_uniform)
        rows_SN = torch.cat([rows_SC.expand(num_draws, -1), uniform_rows], dim=1)
        in_batch = _log_share_of_others(len(pool_G)) + _log(rows_SC.shape[1] / num_negatives)

        def log_probability(rows: Tensor) -> Tensor:
            uniform = self._uniform.log_probability(rows) + _log(num_uniform / num_negatives)
            return torch.logaddexp(self.frequency.log_probability(rows) + in_batch, uniform)

        negatives = Negatives.with_probabilities(rows_SN, target_rows_M, log_probability, independent=False)
        self._observe(target_rows_M, pool_G)
        return negatives


def _log_share_of_others(pool_size: int) -> float:
    """log(1 - 1 / G). Of a pool of one target nothing remains but what the loss leaves out: any finite number will do."""
    return math.log1p(-1 / pool_size) if pool_size > 1 else 0.0


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
