"""Samplers of shared negatives, one for each `loss.sampler.kind`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from training.loss_config import InBatchSampling, LossConfig, UniformSampling
from training.losses.samplers.base import CatalogueSampler, Negatives, Sampler
from training.losses.samplers.catalogue import LogUniformSampler, PopularitySampler, UniformSampler
from training.losses.samplers.in_batch import InBatchSampler, MixedSampler
from training.losses.samplers.streaming import CountedFrequency, StreamingFrequency, StreamingSampler

__all__ = [
    "CatalogueSampler",
    "CountedFrequency",
    "InBatchSampler",
    "LogUniformSampler",
    "MixedSampler",
    "Negatives",
    "PopularitySampler",
    "Sampler",
    "StreamingFrequency",
    "StreamingSampler",
    "UniformSampler",
    "make_sampler",
]


def make_sampler(loss: LossConfig, counts_R: Tensor) -> Sampler:
    """Returns the sampler that a recipe asks for; a uniform one where the kind of loss leaves no choice.

    Args:
        counts_R: float64 counts of each item row, special rows included (and ignored), as `counts` of the
            sampler's configuration wants them.
    """
    config = loss.sampler if loss.kind == "sampled" else UniformSampling()
    return _SAMPLERS[config.kind](config, counts_R)


def _in_batch(config: InBatchSampling, counts_R: Tensor) -> Sampler:
    if config.streaming_rate is None:
        return InBatchSampler(CountedFrequency(counts_R), gather=config.gather_negatives)
    frequency = StreamingFrequency(len(counts_R), config.streaming_rate)
    return InBatchSampler(frequency, gather=config.gather_negatives)


_SAMPLERS: dict[str, Callable[[Any, Tensor], Sampler]] = {
    "uniform": lambda _, counts_R: UniformSampler(len(counts_R)),
    "log_uniform": lambda _, counts_R: LogUniformSampler(counts_R),
    "popularity": lambda config, counts_R: PopularitySampler(counts_R, config.exponent),
    "streaming": lambda config, counts_R: StreamingSampler(StreamingFrequency(len(counts_R), config.rate)),
    "in_batch": _in_batch,
    "mixed": lambda config, counts_R: MixedSampler(
        len(counts_R), config.in_batch_share, gather=config.gather_negatives
    ),
}
"""Kind -> what makes the sampler of a configuration of that kind and of the counts."""
