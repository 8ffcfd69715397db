"""Random encoders of every kind, and histories for them.

Shape legend: B sequences, L length, D width.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from tests.datasets import small_recipe
from training.evaluation_batches import Histories
from training.sequence_model import SequenceModel

NUM_ROWS = 50
MODEL = ("model.dim=16", "model.num_blocks=3", "model.max_history=9", "model.distance_slopes=[0.5, 0.03]")


def random_model(*overrides: str, seed: int = 0) -> SequenceModel:
    """A model whose every parameter is random and large: zeros and ones would hide a bias or a norm that is not applied."""
    model = SequenceModel(small_recipe(*MODEL, *overrides), torch.zeros(NUM_ROWS, dtype=torch.float64), total_steps=1).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model


class SlowTimes(NamedTuple):
    """Milliseconds, of one sequence."""

    query: list[int]
    key: list[int]


def random_items(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_ITEM_ROW, NUM_ROWS, (length,), generator=generator) for length in lengths]


def padded(items: list[Tensor], extra_columns: int = 0) -> Tensor:
    longest = max(len(items_L) for items_L in items) + extra_columns
    return torch.stack([torch.cat([torch.full((longest - len(items_L),), PADDING_ROW), items_L]) for items_L in items])


def random_times(items: list[Tensor], seed: int = 0) -> list[list[int]]:
    """Milliseconds of each item, rising, some in the same second, some years apart."""
    rng = np.random.default_rng(seed)
    return [
        (10**12 + np.cumsum(np.round(10 ** rng.uniform(0, 11, len(items_L))) * (rng.random(len(items_L)) < 0.8))).astype(int).tolist()
        for items_L in items
    ]


def padded_times(times: list[list[int]]) -> Tensor:
    longest = max(map(len, times))
    return torch.tensor([[0] * (longest - len(one)) + one for one in times])


def histories_of(items: list[Tensor]) -> tuple[Histories, list[SlowTimes]]:
    """Right-aligned, with a request some minutes after the last item; and the times of the mask or of the next item."""
    times = random_times(items)
    requests = [one[-1] + 600_000 for one in times]
    with_request = [[*one, request] for one, request in zip(times, requests, strict=True)]
    return Histories(padded(items), padded_times(times), torch.tensor(requests)[:, None]), [SlowTimes(one, one) for one in with_request]


def inputs_of(model: SequenceModel, histories: Histories) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the exported network is given."""
    items_BL, history_vectors_RD = histories.items_BL, model.history_vectors()
    vectors_RD = model.item_vectors() if history_vectors_RD is None else history_vectors_RD
    return vectors_RD[items_BL], items_BL != PADDING_ROW, histories.timestamps_ms_BL, histories.request_timestamp_ms_B1


VARIANTS = {
    "bert4rec": (),
    "four heads": ("model.num_heads=4", "model.distance_slopes=[1.0, 0.3, 0.1, 0.0]"),
    "one way and the other": ("model.head_directions=['past','future']",),
    "both ways and one": ("model.head_directions=['both','past']",),
    "sasrec": ("objective.kind=causal",),
    "rotary": ("model.positions=rotary",),
    "no positions": ("model.positions=none",),
    "rms": ("model.norm=rms",),
    "post-norm": ("model.norm_first=false",),
    "swiglu": ("model.feedforward=swiglu",),
    "gated": ("model.gated=true",),
    "time": ("model.time_bias=true",),
    "separate table": ("model.output_table=separate",),
    "gap": ("model.time_gap=true",),
    "causal gap": ("objective.kind=causal", "model.time_gap=true"),
    "everything": (
        "objective.kind=causal",
        "model.positions=rotary",
        "model.norm=rms",
        "model.norm_first=false",
        "model.feedforward=swiglu",
        "model.gated=true",
        "model.time_bias=true",
        "model.time_gap=true",
    ),
}
