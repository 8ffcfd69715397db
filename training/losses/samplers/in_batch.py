"""Negatives that are the targets of the step itself, alone or mixed with uniform ones.

Shape legend: M target positions of this rank, G positions whose targets are in the pool, S draws, N negatives
of each, C of them from the pool, I items.
"""

import math

import torch
from torch import Tensor

from training.losses.samplers.base import Negatives, PoolIndices, Sampler
from training.losses.samplers.catalogue import UniformSampler
from training.losses.samplers.ranks import gather_rows
from training.losses.samplers.streaming import Frequency


class InBatchSampler(Sampler):
    """Draws from the targets of the step, repetitions included.

    A draw takes at most `num_negatives` of them without replacement, from what earlier draws have left as
    long as that is enough.
    Where it takes all of them there is one draw.

    Targets of different positions come from the frequency q of targets.
    Repetitions are kept, and the correction by q counts them: a target that is there twice has come twice.
    One of the G targets of the pool is the position's own, which is no draw of q; so a negative is a row,
    from another position, with probability q (1 - 1 / G), which is what is reported.
    It is the true one for a step that is yet to come; the targets of one user's history depend on each other.

    Args:
        frequency: q; one that learns is asked before it is shown the step, or it would favour what is there.
        gather: the pool has the targets of all ranks, and is the same on each; otherwise a rank has its own.
    """

    def __init__(self, frequency: Frequency, *, gather: bool) -> None:
        super().__init__()
        self.frequency = frequency
        self._gather = gather

    def draw(
        self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator
    ) -> Negatives:
        pool_G = _pool(target_rows_M, gather=self._gather)
        index_SN = _take(pool_G, num_draws, num_negatives, generator)
        others = _log_share_of_others(len(pool_G))

        def log_probability(rows: Tensor) -> Tensor:
            return self.frequency.log_probability(rows) + others

        pool_indices = PoolIndices(index_SN, torch.searchsorted(pool_G, target_rows_M))
        negatives = Negatives.with_probabilities(
            pool_G[index_SN], target_rows_M, log_probability, pool_indices
        )
        if self.frequency.learns:
            self.frequency.observe(pool_G if self._gather else gather_rows(target_rows_M))
        return negatives


class MixedSampler(Sampler):
    """Draws a share from the targets of the step, the rest uniformly from the catalogue.

    Yang et al., 2020, "Mixed negative sampling for learning two-tower neural networks in recommendations".

    Every item can be drawn in every step, so the correction need not know how often items are targets: given
    the step, a negative is an item that is m times among G targets with probability
    C / N m / G + (1 - C / N) / I.
    That is what is reported, wherever a negative came from (the balance heuristic: Veach and Guibas, 1995,
    "Optimally combining sampling techniques for Monte Carlo rendering").
    A step of few histories, whose targets are similar, is corrected for its own distribution.

    A position's own target is in the step because it is its target.
    Given the targets of the others, its probability is that of an item that is there m - 1 times, and this is
    what is reported: with m, rare targets would be considered too likely.

    Args:
        num_rows: item rows, special rows included.
        in_batch_share: C / N, rounded to whole negatives; fewer where the step has fewer targets.
        gather: as for `InBatchSampler`.
    """

    def __init__(self, num_rows: int, in_batch_share: float, *, gather: bool) -> None:
        super().__init__()
        self._uniform = UniformSampler(num_rows)
        self._in_batch_share = in_batch_share
        self._gather = gather

    def draw(
        self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator
    ) -> Negatives:
        pool_G = _pool(target_rows_M, gather=self._gather)
        index_SC = _take(pool_G, num_draws, round(num_negatives * self._in_batch_share), generator).expand(
            num_draws, -1
        )
        num_uniform = num_negatives - index_SC.shape[1]
        uniform_rows = self._uniform.sample(num_draws * num_uniform, generator, pool_G.device).view(
            num_draws, num_uniform
        )
        rows_SN = torch.cat([pool_G[index_SC], uniform_rows], dim=1)
        in_batch = index_SC.shape[1] / num_negatives / max(1, len(pool_G))

        def log_probability(rows: Tensor, times: Tensor) -> Tensor:
            uniform = self._uniform.log_probability(rows).exp() * num_uniform / num_negatives
            return (in_batch * times + uniform).log()

        return Negatives(
            rows_SN,
            log_probability(rows_SN, _times(rows_SN, pool_G)),
            log_probability(target_rows_M, _times(target_rows_M, pool_G) - 1),
            PoolIndices(
                torch.cat([index_SC, torch.full_like(uniform_rows, -1)], dim=1),
                torch.searchsorted(pool_G, target_rows_M),
            ),
        )


def _pool(target_rows_M: Tensor, *, gather: bool) -> Tensor:
    """Returns int64 [G] targets in ascending order; which of equal ones is a position's own does not
    matter.
    """
    return gather_rows(target_rows_M) if gather else target_rows_M.sort().values


def _take(pool_G: Tensor, num_draws: int, count: int, generator: torch.Generator) -> Tensor:
    """Returns int64 [S, count] indices of a pool, or all of them once, [1, G]."""
    if len(pool_G) <= count:
        return torch.arange(len(pool_G), device=pool_G.device)[None]
    at_once = min(num_draws, len(pool_G) // max(1, count))
    rounds = -(-num_draws // at_once)
    indices_SC = torch.stack(
        [torch.randperm(len(pool_G), generator=generator)[: at_once * count] for _ in range(rounds)]
    )
    return indices_SC.view(rounds * at_once, count)[:num_draws].to(pool_G.device)


def _times(rows: Tensor, pool_G: Tensor) -> Tensor:
    """Returns how often each row is in the pool, as float64."""
    return (torch.searchsorted(pool_G, rows, right=True) - torch.searchsorted(pool_G, rows)).double()


def _log_share_of_others(pool_size: int) -> float:
    """Returns log(1 - 1 / G).

    For a pool of one target any finite number will do: the loss leaves out all negatives.
    """
    return math.log1p(-1 / pool_size) if pool_size > 1 else 0.0
