"""Training predicts as serving does: each target from the history before it, for the time of its event.

Shape legend: R item rows, D width, L history length.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import SplitConfig, make_split
from tests.support.datasets import small_recipe
from tests.support.runs import train
from training.config import Recipe
from training.data.batches import EpochBatches
from training.data.evaluation_batches import Histories
from training.data.windows import training_windows
from training.model import sequence_model
from training.model.factory import build_model
from training.model.sequence_model import SequenceModel

NO_NOISE = ("model.dropout=0", "batches.token_budget=300")
# Without learned positions, which count from the end of the window.
CAUSAL = (*NO_NOISE, "objective.kind=causal", "model.positions=none")
FEATURES = (
    "model.event_types=true",
    "query.features=all",
    "query.time_features=['hour','weekday']",
    "query.dropout=0",
)
TIMES = ("model.time_bias=true", "model.time_gap=true")


def model_of(dataset: Dataset, config: Recipe) -> SequenceModel:
    """Returns the initial model in float64, with random weights where the initial ones are zero."""
    split = make_split(dataset, config.split)
    model = build_model(dataset, split, config, torch.zeros(dataset.num_rows, dtype=torch.float64)).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.items.exact().candidates_UD.mul_(20)
        for name, parameter in model.named_parameters():
            if name.endswith(("time_table_NH", "query_tower.out.weight")):
                parameter.normal_(generator=generator)
    return model


def serving_loss(model: SequenceModel, dataset: Dataset, config: Recipe, first: int, event: int) -> Tensor:
    """Returns the negative log-likelihood of an event, given those of its window before it."""
    histories = Histories(
        torch.from_numpy(dataset.item_rows_E[first:event].astype("int64"))[None],
        torch.from_numpy(dataset.timestamps_ms_E[first:event].copy())[None],
        torch.tensor([[dataset.timestamps_ms_E[event]]]),
        torch.from_numpy(dataset.event_types_E[first:event].astype("int64"))[None],
        torch.from_numpy(np.searchsorted(dataset.offsets_U1, [event], side="right") - 1),
        torch.tensor([event]),
    )
    logits_R = (
        model.encode_histories(histories)[0] @ model.items.exact().candidates_UD.T / config.loss.temperature
    )
    target = torch.tensor(int(dataset.item_rows_E[event]) - FIRST_ITEM_ROW)
    return F.cross_entropy(logits_R[FIRST_ITEM_ROW:], target)


@pytest.mark.parametrize(
    "overrides",
    [
        CAUSAL,
        (*CAUSAL, *TIMES),
        (*CAUSAL, "model.output_table=separate", "loss.temperature=0.5", "loss.max_logits=7"),
        (*NO_NOISE, *TIMES, "objective.last_only_probability=1"),
        (*CAUSAL, *FEATURES),
        (*CAUSAL, "model.num_blocks=0"),
        (*NO_NOISE, *FEATURES, "objective.last_only_probability=1"),
    ],
    ids=[
        "causal",
        "times",
        "separate table and temperature",
        "masked, times",
        "features",
        "pooled",
        "masked, features",
    ],
)
def test_training_loss_matches_serving_queries(
    dataset: Dataset, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of all steps add up to those of the serving code, position by position."""
    config, split = small_recipe(*overrides), make_split(dataset, SplitConfig())
    model = model_of(dataset, config)
    monkeypatch.setattr(sequence_model, "mean_over_ranks", lambda *_: torch.ones(()))
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    windows = training_windows(split, config.model.max_history + 1)
    with torch.no_grad():
        trained = sum(
            float(model.training_step(batch, 0)) for batch in EpochBatches(dataset, split, config, epoch=0)
        )
        served = 0.0
        for start, end in zip(windows.start_W.tolist(), windows.end_W.tolist(), strict=True):
            for event in range(start + 1, end) if model.encoder.causal else [end - 1]:
                first = max(start, event - config.model.max_history)
                served += float(serving_loss(model, dataset, config, first, event)) * float(
                    dataset.weights_E[event]
                )
    assert trained == pytest.approx(served, rel=1e-6)


def test_gradients_are_clipped(dataset: Dataset, tmp_path: Path) -> None:
    """The norm is so small that Adam's epsilon is larger, and weights hardly change."""
    moved = []
    for name, norm in (("free", 5.0), ("clipped", 1e-12)):
        path = tmp_path / name
        train(dataset, path, "training.max_epochs=1", f"optimizer.gradient_clip_norm={norm}")
        checkpoint = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        begun = SequenceModel(
            small_recipe(), torch.zeros(dataset.num_rows, dtype=torch.float64), total_steps=1
        ).state_dict()
        moved.append(float((checkpoint["items.ids.weight"] - begun["items.ids.weight"]).abs().max()))
    assert moved[1] < 1e-4 < 1e-2 < moved[0]
