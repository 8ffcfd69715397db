"""Where shared negatives come from: one sampler for each `loss.sampler`."""

from torch import Tensor

from training.config import LossConfig
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


def make_sampler(config: LossConfig, counts_R: Tensor) -> Sampler:
    """The sampler that a recipe asks for.

    Args:
        counts_R: float64 of each item row, special rows included (and ignored): what `config.counts` says.
    """
    num_rows = len(counts_R)
    match config.sampler:
        case "uniform":
            return UniformSampler(num_rows)
        case "log_uniform":
            return LogUniformSampler(counts_R)
        case "popularity":
            return PopularitySampler(counts_R, config.popularity_exponent)
        case "streaming":
            return StreamingSampler(StreamingFrequency(num_rows, config.streaming_rate))
        case "mixed":
            return MixedSampler(num_rows, config.in_batch_share, gather=config.gather_negatives)
    streaming = config.in_batch_frequency == "streaming"
    frequency = (
        StreamingFrequency(num_rows, config.streaming_rate) if streaming else CountedFrequency(counts_R)
    )
    return InBatchSampler(frequency, gather=config.gather_negatives)
