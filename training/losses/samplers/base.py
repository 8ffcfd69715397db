"""The interface of samplers of shared negatives.

Shape legend: M target positions of this rank, S draws, N negatives of each.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PoolIndices:
    """Indices into the targets of the step, where those are a pool of negatives."""

    negatives_SN: Tensor
    """int64 index in the pool of each negative; -1 for one from the catalogue."""
    own_M: Tensor
    """int64 index in the pool of each position's own target.

    A negative from there is one that the position contributed itself."""


@dataclass(frozen=True)
class Negatives:
    """Negatives of one step, drawn several times; `DrawAssignment` says which position takes which draw."""

    rows_SN: Tensor
    """int64 item rows, with repetitions; never a special row."""
    log_probability_SN: Tensor
    """float64 log-probability that a negative is this row, for a position whose target is another one.

    Float64, because probabilities of a whole catalogue must sum to one.
    Losses cast their logits after the correction."""
    target_log_probability_M: Tensor
    """float64 log-probability that a negative is the target of this position, without its own contribution.
    """
    pool_indices: PoolIndices | None = None
    """Set where negatives come from the targets of the step."""

    @classmethod
    def with_probabilities(
        cls,
        rows_SN: Tensor,
        target_rows_M: Tensor,
        log_probability: Callable[[Tensor], Tensor],
        pool_indices: PoolIndices | None = None,
    ) -> "Negatives":
        """Computes all log-probabilities at once, because some frequencies pass over the catalogue for
        them.
        """
        both = log_probability(torch.cat([rows_SN.flatten(), target_rows_M]))
        if both.device.type == "cpu":  # on a GPU this would synchronise
            assert both.isfinite().all(), "a target without counts"
        of_negatives, of_targets = both.tensor_split([rows_SN.numel()])
        return cls(rows_SN, of_negatives.view_as(rows_SN), of_targets, pool_indices)


class Sampler(nn.Module, ABC):
    """Draws the negatives of a step and knows how probable each was.

    It is a module, so that what a sampler learns (buffers) is moved, saved and restored with the model.
    What follows from the counts is no buffer, because it can be computed from them, and because
    DistributedDataParallel would send it to every rank at each step.
    """

    @abstractmethod
    def draw(
        self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator
    ) -> Negatives:
        """Returns negatives on the device of the targets.

        Every rank calls it once at each step, with a generator in the same state.

        Args:
            num_draws: how many times to draw (> 0), independently unless a sampler says otherwise.
            num_negatives: how many each time (> 0); a sampler that says so may return fewer.
            target_rows_M: int64 targets of this rank's positions; may be empty.
            generator: a CPU generator, so that the draws are the same on any device.
        """


class CatalogueSampler(Sampler):
    """Draws negatives with replacement from a distribution over the whole catalogue.

    It does not depend on the targets of the step.
    """

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Returns int64 [count] item rows on `device`; never a special row."""

    @abstractmethod
    def log_probability(self, rows: Tensor) -> Tensor:
        """Returns the float64 log-probability that a negative is each of these item rows, in the shape of
        `rows`.
        """

    def draw(
        self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator
    ) -> Negatives:
        rows_SN = self.sample(num_draws * num_negatives, generator, target_rows_M.device).view(
            num_draws, num_negatives
        )
        return Negatives.with_probabilities(rows_SN, target_rows_M, self.log_probability)


def search(cumulative_R: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Returns int64 [count] rows, drawn in proportion to the steps of a float64 cumulative sum.

    A row without a step is never returned.
    """
    uniform_N = torch.rand(count, generator=generator, dtype=torch.float64).to(cumulative_R.device)
    total = cumulative_R[-1]
    # A product that rounds up to the total would be past the last row, so it is clamped below it.
    height_N = torch.minimum(uniform_N * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative_R, height_N, right=True)
