"""One of each sampler, by name, over a few items."""

import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.config import LossConfig
from training.losses.samplers import CatalogueSampler, Sampler, make_sampler

CONFIGS: dict[str, dict[str, object]] = {
    "uniform": {},
    "log_uniform": {"sampler": "log_uniform"},
    "popularity": {"sampler": "popularity"},
    "flattened popularity": {"sampler": "popularity", "popularity_exponent": 0.5},
    "streaming": {"sampler": "streaming", "streaming_rate": 0.05},
    "in batch": {"sampler": "in_batch"},
    "in batch, streaming": {"sampler": "in_batch", "in_batch_frequency": "streaming"},
    "mixed": {"sampler": "mixed"},
    "mostly in batch": {"sampler": "mixed", "in_batch_share": 0.75},
}
CATALOGUE = ["uniform", "log_uniform", "popularity", "flattened popularity", "streaming"]


def make(name: str, counts_of_items: list[int]) -> Sampler:
    counts_R = torch.tensor(
        [5.0, 7.0, *counts_of_items], dtype=torch.float64
    )  # what stands in the special rows must not matter
    return make_sampler(LossConfig.model_validate({"kind": "sampled", **CONFIGS[name]}), counts_R)


def make_catalogue(name: str, counts_of_items: list[int]) -> CatalogueSampler:
    sampler = make(name, counts_of_items)
    assert isinstance(sampler, CatalogueSampler)
    return sampler


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_rows(num_items: int) -> Tensor:
    return torch.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + num_items)
