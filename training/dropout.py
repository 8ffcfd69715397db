"""Dropout that draws from a generator of its own, and quickly on a CPU."""

import numpy as np
import torch
from torch import Tensor

_LEVELS = 2**16


class Dropout:
    """One step's dropout noise: a fresh mask at each call, the same masks for the same seed.

    PyTorch's own dropout draws from the global generator, and on a CPU its Bernoulli sampling took 30 % of a training step:
    here a CPU draws 16 random bits an element (so the probability is rounded to 1/65536).

    Args:
        probability: chance of an element to be zeroed; the others grow so that the mean stays.
        seed: of this step on this rank.
        device: where the tensors live.
    """

    def __init__(self, probability: float, seed: int, device: torch.device) -> None:
        self._threshold = round(probability * _LEVELS)
        self._scale = _LEVELS / (_LEVELS - self._threshold)
        self._cpu = np.random.Generator(np.random.SFC64(seed)) if device.type == "cpu" else None
        self._accelerator = torch.Generator(device).manual_seed(seed) if device.type != "cpu" else None

    def __call__(self, values: Tensor) -> Tensor:
        """`values` with some elements zero and the others scaled."""
        if self._threshold == 0:
            return values
        if self._cpu is not None:
            bits = torch.from_numpy(self._cpu.integers(_LEVELS, size=tuple(values.shape), dtype=np.uint16).view(np.int16))
            kept = bits >= self._threshold - _LEVELS // 2
        else:
            kept = torch.rand(values.shape, device=values.device, generator=self._accelerator) * _LEVELS >= self._threshold
        return values * (kept.to(values.dtype) * self._scale)
