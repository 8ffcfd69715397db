"""Random encoders of every kind, and histories for them.

Shape legend: B sequences, L length, D width.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from passerelle.dataset import FeatureColumn, FeatureKind
from passerelle.encoding import QueryEncoding, fit_encoding
from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from tests.support.datasets import small_recipe
from training.data.evaluation_batches import Histories
from training.export.onnx_files import query_inputs
from training.model.query_features import QueryFeatures
from training.model.sequence_model import SequenceModel

NUM_ROWS, NUM_EVENT_TYPES = 50, 3
NUM_USERS, NUM_EVENTS = 6, 11
MODEL = ("model.dim=16", "model.num_blocks=3", "model.max_history=9", "model.distance_slopes=[0.5, 0.03]")


def random_model(*overrides: str, seed: int = 0) -> SequenceModel:
    """Returns a model with large random parameters.

    Initial zeros and ones would hide a bias or a norm that is not applied.
    """
    config, counts_R = small_recipe(*MODEL, *overrides), torch.zeros(NUM_ROWS, dtype=torch.float64)
    features = random_features(seed) if config.query.features or config.query.time_features else None
    model = SequenceModel(
        config, counts_R, 1, query_features=features, num_event_types=NUM_EVENT_TYPES
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model


def random_features(seed: int) -> QueryFeatures:
    """Returns features of six users and eleven events, with missing values."""
    rng = np.random.default_rng(seed)
    tables = [
        pa.table(
            {
                "city": pa.array(
                    [None if rng.random() < 0.2 else f"city {rng.integers(3)}" for _ in range(count)],
                    pa.string(),
                ),
                "tags": pa.array(
                    [[f"tag {tag}" for tag in rng.integers(4, size=rng.integers(3))] for _ in range(count)],
                    pa.list_(pa.string()),
                ),
                "age": pa.array([None if rng.random() < 0.2 else rng.normal(40, 9) for _ in range(count)]),
            }
        )
        for count in (NUM_USERS, NUM_EVENTS)
    ]
    kinds: dict[str, FeatureKind] = {"city": "categorical", "tags": "multi_categorical", "age": "numeric"}
    features = [FeatureColumn(name=name, kind=kind) for name, kind in kinds.items()]
    encoding = QueryEncoding(
        user=fit_encoding(tables[0], features, 1), context=fit_encoding(tables[1], features[:1], 1)
    )
    users, contexts = (
        own.encode(table) for own, table in zip((encoding.user, encoding.context), tables, strict=True)
    )
    return QueryFeatures(
        encoding,
        *(
            (torch.from_numpy(rows.codes_NS.astype(np.int32)), torch.from_numpy(rows.numbers_NF))
            for rows in (users, contexts)
        ),
    )


class SlowTimes(NamedTuple):
    """Times of one sequence, in milliseconds."""

    query: list[int]
    key: list[int]


def random_items(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_ITEM_ROW, NUM_ROWS, (length,), generator=generator) for length in lengths]


def padded(items: list[Tensor], extra_columns: int = 0) -> Tensor:
    longest = max(len(items_L) for items_L in items) + extra_columns
    return torch.stack(
        [torch.cat([torch.full((longest - len(items_L),), PADDING_ROW), items_L]) for items_L in items]
    )


def random_times(items: list[Tensor], seed: int = 0) -> list[list[int]]:
    """Returns ascending times of items in milliseconds, with gaps from below a second to years."""
    rng = np.random.default_rng(seed)
    return [
        (
            10**12
            + np.cumsum(np.round(10 ** rng.uniform(0, 11, len(items_L))) * (rng.random(len(items_L)) < 0.8))
        )
        .astype(int)
        .tolist()
        for items_L in items
    ]


def padded_times(times: list[list[int]]) -> Tensor:
    longest = max(map(len, times))
    return torch.tensor([[0] * (longest - len(one)) + one for one in times])


def histories_of(items: list[Tensor]) -> tuple[Histories, list[SlowTimes]]:
    """Returns right-aligned histories with requests after the last item, and times with the request."""
    times = random_times(items)
    requests = [one[-1] + 600_000 for one in times]
    with_request = [[*one, request] for one, request in zip(times, requests, strict=True)]
    rng = np.random.default_rng(len(items))
    users_B, events_B = (
        torch.from_numpy(rng.integers(-1, bound, size=len(items))) for bound in (NUM_USERS, NUM_EVENTS)
    )
    types_BL = event_types_of(padded(items))
    histories = Histories(
        padded(items), padded_times(times), torch.tensor(requests)[:, None], types_BL, users_B, events_B
    )
    return histories, [SlowTimes(one, one) for one in with_request]


def event_types_of(items_BL: Tensor) -> Tensor:
    """Returns event types that depend on the items, 0 in the padding."""
    return items_BL % NUM_EVENT_TYPES


def inputs_of(model: SequenceModel, histories: Histories) -> dict[str, Tensor]:
    """Returns the inputs of the exported network, by name."""
    vectors_RD = model.history_vectors()
    return query_inputs(
        model, histories, (model.item_vectors() if vectors_RD is None else vectors_RD).numpy()
    )


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
    "event types": ("model.event_types=true",),
    "pooled": ("objective.kind=causal", "model.num_blocks=0"),
    "features": ("query.features=all",),
    "features of users": ("objective.kind=causal", "query.features=['age','tags']"),
    "time_features": ("query.time_features=['hour']",),
    "everything": (
        "objective.kind=causal",
        "query.features=all",
        "query.time_features=['hour','weekday']",
        "model.event_types=true",
        "model.positions=rotary",
        "model.norm=rms",
        "model.norm_first=false",
        "model.feedforward=swiglu",
        "model.gated=true",
        "model.time_bias=true",
        "model.time_gap=true",
    ),
}
