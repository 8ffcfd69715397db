"""What a sampler of shared negatives is.

Shape legend: M target positions of this rank, S draws, N negatives of each.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PoolIndices:
    """Which of the step's targets negatives are, where those are a pool of negatives."""

    negatives_SN: Tensor
    """int64 place in the pool that each negative was taken from; -1: from the catalogue."""
    own_M: Tensor
    """int64 place in the pool of the position's own target: a negative from there is one that the position
    has brought in itself."""


@dataclass(frozen=True)
class Negatives:
    """Negatives of one step, drawn several times: which position takes which draw,
    `training.data.draw_assignment` says.
    """

    rows_SN: Tensor
    """int64 item rows, with repetitions; never a special row."""
    log_probability_SN: Tensor
    """float64 log-probability that a negative is this row, for a position whose target is another one.

    Float64, because what is summed over a catalogue has to come to one; losses cast their logits after the
    correction."""
    target_log_probability_M: Tensor
    """float64 log-probability that a negative is the target of this position, and was not brought in by it.
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
        """Ask for all log-probabilities at once: some frequencies go through the catalogue to answer."""
        both = log_probability(torch.cat([rows_SN.flatten(), target_rows_M]))
        if both.device.type == "cpu":  # a GPU would have to be waited for
            assert both.isfinite().all(), "a target of which the counts know nothing"
        of_negatives, of_targets = both.tensor_split([rows_SN.numel()])
        return cls(rows_SN, of_negatives.view_as(rows_SN), of_targets, pool_indices)


class Sampler(nn.Module, ABC):
    """Draws the negatives of a step and knows how probable each was.

    A module, so that what a sampler learns (buffers) is moved, saved and restored with the model.
    What follows from the counts is no buffer: it is made again from them, and DistributedDataParallel would
    send it to every rank at each step.
    """

    @abstractmethod
    def draw(
        self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator
    ) -> Negatives:
        """Negatives on the device of the targets.

        Every rank calls it once at each step, with a generator in the same state.

        Args:
            num_draws: how many times to draw (> 0), independently of each other but in a sampler that says
                so.
            num_negatives: how many each time (> 0); a sampler that says so may return fewer.
            target_rows_M: int64 targets of this rank's positions; may be empty.
            generator: a CPU generator, so that the draws are the same on any device.
        """


class CatalogueSampler(Sampler):
    """Takes negatives with replacement from a distribution over the whole catalogue; the targets of the step
    have no part in it.
    """

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """int64 [count] item rows on `device`; never a special row."""

    @abstractmethod
    def log_probability(self, rows: Tensor) -> Tensor:
        """float64 log-probability that a negative is each of these item rows; the shape of `rows`."""

    def draw(
        self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator
    ) -> Negatives:
        rows_SN = self.sample(num_draws * num_negatives, generator, target_rows_M.device).view(
            num_draws, num_negatives
        )
        return Negatives.with_probabilities(rows_SN, target_rows_M, self.log_probability)


def search(cumulative_R: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """int64 [count] rows in proportion to the steps of a float64 cumulative sum; a row without a step is
    never returned.
    """
    uniform_N = torch.rand(count, generator=generator, dtype=torch.float64).to(cumulative_R.device)
    total = cumulative_R[-1]
    # A product that rounds up to the total would fall behind the last row, so it is brought back below it.
    height_N = torch.minimum(uniform_N * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative_R, height_N, right=True)
