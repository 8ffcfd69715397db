"""What a sampler of shared negatives is.

Shape legend: M target positions of this rank, S draws, N negatives of each.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Negatives:
    """Negatives of one step: its positions take the draws in turn, the first the first, the one after the last the first again.

    One draw for all would be as good on average, but what its few items happen to be would push all queries the same way. In turn,
    and not a draw for each stretch of positions, because those of one history ask for like items.
    """

    rows_SN: Tensor
    """int64 item rows, with repetitions; never a special row."""
    log_probability_SN: Tensor
    """float64 log-probability of the row to be what is drawn, for a position whose target is another one.

    Float64, because what is summed over a catalogue has to come to one; losses cast their logits after the correction.
    """
    target_log_probability_M: Tensor
    """float64 log-probability of each position's target to be drawn for another position."""


class Sampler(nn.Module, ABC):
    """Draws the negatives of a step and knows how probable each was.

    A module, so that what a sampler learns (buffers) is moved, saved and restored with the model. What follows from the counts is
    no buffer: it is made again from them, and DistributedDataParallel would send it to every rank at each step.
    """

    @abstractmethod
    def draw(self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator) -> Negatives:
        """Negatives on the device of the targets.

        Every rank calls it once at each step, with a generator in the same state.

        Args:
            num_draws: how many times to draw (> 0), independently of each other.
            num_negatives: how many each time (> 0); a sampler that says so may return fewer.
            target_rows_M: int64 targets of this rank's positions; may be empty.
            generator: a CPU generator, so that the draws are the same on any device.
        """


class CatalogueSampler(Sampler):
    """Draws with replacement from a distribution over the whole catalogue; the targets of the step have no part in it."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """int64 [count] item rows on `device`; never a special row."""

    @abstractmethod
    def log_probability(self, rows: Tensor) -> Tensor:
        """float64 log-probability that one draw gives each of these item rows; the shape of `rows`."""

    def draw(self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator) -> Negatives:
        rows_SN = self.sample(num_draws * num_negatives, generator, target_rows_M.device).view(num_draws, num_negatives)
        return Negatives(rows_SN, self.log_probability(rows_SN), self.log_probability(target_rows_M))


def search(cumulative_R: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """int64 [count] rows in proportion to the steps of a float64 cumulative sum; a row without a step is never returned."""
    uniform_N = torch.rand(count, generator=generator, dtype=torch.float64).to(cumulative_R.device)
    total = cumulative_R[-1]
    # A product that rounds up to the total would fall behind the last row, so it is brought back below it.
    height_N = torch.minimum(uniform_N * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative_R, height_N, right=True)
