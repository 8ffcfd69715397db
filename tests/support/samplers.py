"""One of each sampler, by name, over a few items."""

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.loss_config import (
    InBatchSampling,
    LogUniformSampling,
    MixedSampling,
    PopularitySampling,
    SampledLoss,
    SamplerConfig,
    StreamingSampling,
    UniformSampling,
)
from training.losses.samplers import CatalogueSampler, Sampler, make_sampler

CONFIGS: dict[str, SamplerConfig] = {
    "uniform": UniformSampling(),
    "log_uniform": LogUniformSampling(),
    "popularity": PopularitySampling(),
    "flattened popularity": PopularitySampling(exponent=0.5),
    "streaming": StreamingSampling(rate=0.05),
    "in batch": InBatchSampling(),
    "in batch, streaming": InBatchSampling(streaming_rate=0.01),
    "mixed": MixedSampling(),
    "mostly in batch": MixedSampling(in_batch_share=0.75),
}
CATALOGUE = ["uniform", "log_uniform", "popularity", "flattened popularity", "streaming"]


def make(name: str, counts_of_items: list[int]) -> Sampler:
    # what stands in the special rows must not matter
    counts_R = torch.tensor([5.0, 7.0, *counts_of_items], dtype=torch.float64)
    return make_sampler(SampledLoss(sampler=CONFIGS[name]), counts_R)


def make_catalogue(name: str, counts_of_items: list[int]) -> CatalogueSampler:
    sampler = make(name, counts_of_items)
    assert isinstance(sampler, CatalogueSampler)
    return sampler


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_rows(num_items: int) -> Tensor:
    return torch.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + num_items)
