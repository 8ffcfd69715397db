"""Dropout whose noise depends on the token, and not on the rank or the batch position that computes it.

Shape legend: B sequences, L padded length, D width, W = D / 4 words of noise.
"""

import torch
from torch import Tensor

_LEVELS = 2**16
# Multipliers and shifts of splitmix64 (Steele, Lea and Flood, 2014), as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_STAGES = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_LAST_SHIFT = 31


class Dropout:
    """The dropout of one step: a new mask at each call, which for a token is the same on any rank.

    So training depends neither on the number of workers nor on padding or a global generator.
    The noise is a hash of (seed, token, call, channel) with 16 bits for each element, so the probability is
    rounded to 1/65536.
    On a CPU, PyTorch's own Bernoulli sampling took 30 % of a training step.

    Args:
        probability: of an element to be zeroed; the others are scaled up, so that the mean stays.
        seed: of the step.
        token_BL: int64, a different number for each token of the step.
    """

    def __init__(self, probability: float, seed: int, token_BL: Tensor) -> None:
        self._threshold = round(probability * _LEVELS)
        self._scale = _LEVELS / (_LEVELS - self._threshold)
        # A tensor: a compiler would fold a number into 128 bits.
        self._golden = torch.full((), _GOLDEN, device=token_BL.device)
        self._state_BL = _mixed(token_BL * self._golden + seed)
        self._calls = 0

    def __call__(self, values_BLD: Tensor, columns_BP: Tensor | None = None) -> Tensor:
        """Returns the values with some elements zeroed and the others scaled up.

        Args:
            columns_BP: int64 columns whose values are given; None: all.
        """
        if self._threshold == 0:
            return values_BLD
        state_BL = self._state_BL if columns_BP is None else self._state_BL.gather(1, columns_BP)
        width = values_BLD.shape[-1]
        words = -(-width // 4)
        number_W = torch.arange(self._calls * words, (self._calls + 1) * words, device=values_BLD.device)
        self._calls += 1
        bits_BLD = _mixed(state_BL[..., None] + number_W * self._golden).view(torch.int16)[..., :width]
        keep_BLD = bits_BLD >= self._threshold - _LEVELS // 2
        return values_BLD * (keep_BLD.to(values_BLD.dtype) * self._scale)


def keep_mask(rows: Tensor, probability: float, seed: int) -> Tensor:
    """Returns a bool mask that drops each row with the given probability, whatever other rows are given."""
    golden = torch.full((), _GOLDEN, device=rows.device)
    bits = _mixed(_mixed(rows * golden + seed)).view(torch.int16)[..., ::4]
    return bits >= round(probability * _LEVELS) - _LEVELS // 2


def _mixed(words: Tensor) -> Tensor:
    """Returns splitmix64's finaliser: every bit of the result depends on every bit of the word."""
    for shift, multiplier in _STAGES:
        words = (words ^ _shifted(words, shift)) * multiplier
    return words ^ _shifted(words, _LAST_SHIFT)


def _shifted(words: Tensor, count: int) -> Tensor:
    """Returns the logical right shift; torch's own keeps the sign."""
    return (words >> count) & (2 ** (64 - count) - 1)
