"""The training loss of an epoch, over all ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from passerelle.errors import UserError


class EpochLoss:
    """The total loss of an epoch's steps so far, and their number; a checkpoint within the epoch holds both.

    Args:
        learning_rate: the recipe's, which an error message names.
    """

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._sums = torch.zeros(2, dtype=torch.float64)

    def add(self, loss: Tensor) -> None:
        """Adds the loss of a step on this rank."""
        self._sums = self._sums.to(loss.device)
        self._sums[0] += loss
        self._sums[1] += 1

    def sums(self, device: torch.device, epoch: int) -> Tensor:
        """Returns float64 total loss and number of steps, averaged over ranks; a collective call.

        Everything that is kept of an epoch waits for this call, so that nothing is kept after a NaN.

        Args:
            device: by which the ranks communicate.
            epoch: number of the epoch, from 0.

        Raises:
            UserError: training has diverged.
        """
        sums = mean_over_ranks(self._sums, device)
        if not sums.isfinite().all():
            raise UserError(
                f"epoch {epoch + 1}: the training loss is {sums[0]:g}: "
                f"try optimizer.learning_rate below {self._learning_rate:g}"
            )
        return sums

    def mean(self, device: torch.device, epoch: int) -> Tensor:
        """Returns the mean float32 loss of the steps so far; arguments and errors are those of `sums`."""
        total, steps = self.sums(device, epoch)
        return (total / steps).float()

    def restore(self, sums: Tensor) -> None:
        """Continues an epoch from the sums of a checkpoint."""
        self._sums = sums.clone()

    def reset(self) -> None:
        """Starts another epoch."""
        self._sums.zero_()


def mean_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """Returns the mean over ranks in a new tensor on `device`; a collective call."""
    values = values.to(device, copy=True)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
