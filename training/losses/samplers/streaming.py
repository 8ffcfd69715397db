"""How often each item is a target: counted before training, or estimated while it runs; and a sampler that
follows the estimate.

Shape legend: R item rows (special rows included), I items, M target positions of this rank, G those of all
ranks together, U distinct rows of a step, N negatives.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from passerelle.ids import FIRST_ITEM_ROW
from training.losses.samplers.base import CatalogueSampler, Negatives, search
from training.losses.samplers.ranks import gather_rows

REFRESH_SHARE = 0.1


class Frequency(nn.Module, ABC):
    """The probability of each item row to be the target of a position."""

    @abstractmethod
    def log_probability(self, rows: Tensor) -> Tensor:
        """Returns float64 in the shape of `rows`, on their device; finite for every row that can be a
        target.
        """

    @abstractmethod
    def observe(self, target_rows_G: Tensor) -> None:
        """Learns from the targets of a step, those of all ranks."""

    learns: bool
    """Whether `observe` does anything; otherwise nothing is gathered for it."""


class CountedFrequency(Frequency):
    """Shares of counts; a row without any is never a target and has log-probability -inf.

    Args:
        counts_R: how often each item row is a target.
    """

    learns = False

    def __init__(self, counts_R: Tensor) -> None:
        super().__init__()
        counts_R = counts_R.double().clone()
        counts_R[:FIRST_ITEM_ROW] = 0.0
        self._log_probability_R = counts_R.log() - counts_R.sum().clamp_min(1.0).log()

    def log_probability(self, rows: Tensor) -> Tensor:
        self._log_probability_R = self._log_probability_R.to(rows.device)
        return self._log_probability_R[rows]

    def observe(self, target_rows_G: Tensor) -> None:
        """Nothing to learn."""


class StreamingFrequency(Frequency):
    """Estimated from the gaps between an item's appearances among the targets, with no count known
    beforehand.

    After Yi et al., 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations".
    As there, each item has the time of its last appearance and a moving mean of its gaps, whose inverse is
    its frequency.
    Differences: the clock counts targets, not steps, so that steps of any size and items that appear several
    times in one are counted right; until an item has been seen 1 / rate times its gaps have equal weights, so
    that no first guess has to be forgotten; an item that comes no more fades away, for its frequency is its
    appearances over the time of their gaps and of the one still open; one number for each row, not a hash.
    The clock starts at the number of items, as though each had been seen just before it: an item not yet seen
    has a chance, too.

    Frequencies of all rows change with every target.
    They are computed anew once `REFRESH_SHARE` of the number of items have been shown, so that a step costs
    about as much in a catalogue of any size; until then draws and probabilities are of the same older ones.

    Its state (32 bytes a row) is in buffers, and is the same on all ranks as long as each is shown the
    targets of all.

    Args:
        num_rows: item rows, special rows included.
        rate: weight of the newest gap in the long run, in (0, 1): about 1 / rate appearances are remembered.
    """

    learns = True

    clock: Tensor
    """int64 targets seen so far, plus the number of items."""
    last_R: Tensor
    """int64 clock at the end of the step in which the row was seen last."""
    gap_R: Tensor
    """float64 mean number of targets between two appearances."""
    seen_R: Tensor
    """int64 appearances."""
    cumulative_R: Tensor
    """float64 cumulative sum of the frequencies, up to a factor, as last computed."""
    num_stale: Tensor
    """int64 targets that were shown since; -1 before it was computed for the first time."""

    def __init__(self, num_rows: int, rate: float) -> None:
        super().__init__()
        assert num_rows > FIRST_ITEM_ROW and 0 < rate < 1
        self._rate = rate
        self.register_buffer("clock", torch.tensor(num_rows - FIRST_ITEM_ROW))
        self.register_buffer("last_R", torch.zeros(num_rows, dtype=torch.int64))
        self.register_buffer("gap_R", torch.zeros(num_rows, dtype=torch.float64))
        self.register_buffer("seen_R", torch.zeros(num_rows, dtype=torch.int64))
        self.register_buffer("cumulative_R", torch.zeros(num_rows, dtype=torch.float64))
        self.register_buffer("num_stale", torch.tensor(-1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Checkpoints of earlier versions lack what can be computed anew.
        state_dict.setdefault(f"{prefix}cumulative_R", torch.zeros_like(self.cumulative_R))
        state_dict.setdefault(f"{prefix}num_stale", torch.tensor(-1))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def observe(self, target_rows_G: Tensor) -> None:
        self.clock += len(target_rows_G)
        self.num_stale += torch.where(self.num_stale < 0, 0, len(target_rows_G))
        rows_U, times_U = torch.unique(target_rows_G, return_counts=True)
        self.seen_R[rows_U] += times_U
        # Seen n times since the last step with it: n gaps, each the n-th part of the time between.
        mean_gap_U = (self.clock - self.last_R[rows_U]).double() / times_U
        weight_U = torch.maximum(
            times_U / self.seen_R[rows_U].double(), 1 - (1 - self._rate) ** times_U.double()
        )
        self.gap_R[rows_U] += weight_U * (mean_gap_U - self.gap_R[rows_U])
        self.last_R[rows_U] = self.clock

    def cumulative(self) -> Tensor:
        """Returns the cumulative sum [R] that is drawn from, computed anew where it is too old."""
        num_items = len(self.cumulative_R) - FIRST_ITEM_ROW
        if not 0 <= int(self.num_stale) < REFRESH_SHARE * num_items:
            self.cumulative_R.copy_(self.weights().cumsum(0))
            self.num_stale.zero_()
        return self.cumulative_R

    def weights(self) -> Tensor:
        """Returns float64 [R] frequencies now, up to a factor; 0 for the special rows."""
        remembered_R = self.seen_R.clamp_min(1).double().clamp_max(1 / self._rate)
        # n appearances over the time of n gaps and the open one: n / (n gap + open).
        weights_R = 1 / (self.gap_R + (self.clock - self.last_R).double() / remembered_R)
        weights_R[:FIRST_ITEM_ROW] = 0.0
        return weights_R

    def log_probability(self, rows: Tensor) -> Tensor:
        cumulative_R = self.cumulative()
        before = torch.where(rows > 0, cumulative_R[rows - 1], 0.0)
        return ((cumulative_R[rows] - before) / cumulative_R[-1]).log()


class StreamingSampler(CatalogueSampler):
    """Draws from the estimate as it is, then shows it the targets of the step: draws do not depend on what
    they are held against.

    What it reports is exactly what it draws from, however rough the estimate is.
    """

    def __init__(self, frequency: StreamingFrequency) -> None:
        super().__init__()
        self.frequency = frequency

    def sample(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return search(self.frequency.cumulative(), count, generator).to(device)

    def log_probability(self, rows: Tensor) -> Tensor:
        return self.frequency.log_probability(rows)

    def draw(
        self, num_draws: int, num_negatives: int, target_rows_M: Tensor, generator: torch.Generator
    ) -> Negatives:
        negatives = super().draw(num_draws, num_negatives, target_rows_M, generator)
        self.frequency.observe(gather_rows(target_rows_M))
        return negatives
