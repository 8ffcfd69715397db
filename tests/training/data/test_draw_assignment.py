"""Positions of a step take its draws of negatives in turn, whoever computes them.

Shape legend: M positions, D width, S draws, T positions that take the same draw, N negatives of each.
"""

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passerelle.dataset import Dataset
from passerelle.splits import SplitConfig, make_split
from tests.support.datasets import small_recipe
from training.data.batches import Batch, EpochBatches
from training.data.draw_assignment import assign_draws
from training.data.statistics import num_events
from training.model import sequence_model, step_loss
from training.model.sequence_model import SequenceModel

NO_NOISE = "model.dropout=0"
UNIFORM = ("loss.kind=sampled", "loss.num_negatives=16", "loss.num_draws=7")
POPULAR = (*UNIFORM, "loss.sampler=popularity")
GBCE = ("loss.kind=gbce", "loss.num_negatives=16", "loss.num_draws=7")
CAUSAL = ("objective.kind=causal",)


@given(st.lists(st.integers(0, 200), unique=True, max_size=60), st.integers(1, 70))
def test_draw_assignment_equals_a_naive_implementation(numbers: list[int], num_draws: int) -> None:
    taken: dict[int, list[int]] = {}
    for position, number in enumerate(numbers):
        taken.setdefault(number % num_draws, []).append(position)
    width = max(map(len, taken.values()), default=0)
    assignment = assign_draws(np.array(numbers, dtype=np.int64), num_draws)
    assert assignment.draws_S.tolist() == sorted(taken)
    assert assignment.positions_ST.shape == (len(taken), width)
    expected = [taken[draw] + [len(numbers)] * (width - len(taken[draw])) for draw in sorted(taken)]
    assert assignment.positions_ST.tolist() == expected
    assert {assignment.draws_S.dtype, assignment.positions_ST.dtype} == {torch.int64}


def draws_of_targets(batch: Batch) -> list[tuple[int, int]]:
    """Each target's row and draw."""
    rows = batch.target_rows_M.tolist()
    drawn = zip(
        batch.draw_assignment.draws_S.tolist(), batch.draw_assignment.positions_ST.tolist(), strict=True
    )
    return [
        (rows[position], draw) for draw, positions in drawn for position in positions if position < len(rows)
    ]


def model_and_ranks(
    dataset: Dataset, overrides: tuple[str, ...], world_size: int
) -> tuple[SequenceModel, list[list[Batch]]]:
    """A model in training, and the steps of each rank."""
    config = small_recipe(NO_NOISE, *overrides)
    split = make_split(dataset, SplitConfig())
    model = SequenceModel(config, torch.from_numpy(num_events(dataset, split)).double(), total_steps=1)
    return model, [
        list(EpochBatches(dataset, split, config, epoch=0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("objective", [(), CAUSAL], ids=["masked", "causal"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_target_takes_the_same_draw_for_any_number_of_ranks(
    dataset: Dataset, objective: tuple[str, ...], world_size: int
) -> None:
    alone, ranks = (model_and_ranks(dataset, (*objective, *UNIFORM), size)[1] for size in (1, world_size))
    for step, whole in enumerate(alone[0]):
        shared = [drawn for rank in ranks for drawn in draws_of_targets(rank[step])]
        assert sorted(shared) == sorted(draws_of_targets(whole))
        assert len(shared) == len(whole.target_rows_M)
        assert len({draw for _, draw in shared}) == min(7, len(shared)), "all are taken"


def loss_sum(model: SequenceModel, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Of a step of one rank: what `training_step` divides by the weights of all."""
    monkeypatch.setattr(sequence_model, "mean_over_ranks", lambda *_: torch.ones(()))
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    return model.training_step(batch, 0)


@pytest.mark.parametrize("overrides", [UNIFORM, (*CAUSAL, *POPULAR), GBCE], ids=["masked", "causal", "gbce"])
def test_losses_of_ranks_sum_to_that_of_one_process(
    dataset: Dataset, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, alone = model_and_ranks(dataset, overrides, 1)
    _, ranks = model_and_ranks(dataset, overrides, 2)
    for step in range(3):
        whole = loss_sum(model, alone[0][step], monkeypatch)
        parts = [loss_sum(model, rank[step], monkeypatch) for rank in ranks]
        torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (POPULAR, {"correction": True, "correct_target": True, "temperature": 1.0}),
        ((*POPULAR, "loss.correct_target=false"), {"correction": True, "correct_target": False}),
        ((*POPULAR, "loss.log_q_correction=false"), {"correction": False}),
        ((*POPULAR, "loss.temperature=0.5"), {"temperature": 0.5}),
        (("loss.temperature=0.5", "loss.max_logits=7"), {"temperature": 0.5, "max_logits": 7}),
        (
            (*GBCE, "loss.gbce_calibration=0.4", "loss.temperature=0.5"),
            {"calibration": 0.4, "temperature": 0.5},
        ),
    ],
)
def test_settings_reach_the_loss(
    dataset: Dataset,
    overrides: tuple[str, ...],
    expected: dict[str, bool | float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = (
        "gbce"
        if "loss.kind=gbce" in overrides
        else "sampled_softmax"
        if "loss.kind=sampled" in overrides
        else "full_softmax"
    )
    loss, asked = getattr(step_loss, name), {}

    def overheard(*arguments: Any, **settings: Any) -> Tensor:
        asked.update(settings)
        return cast(Tensor, loss(*arguments, **settings))

    monkeypatch.setattr(step_loss, name, overheard)
    model, ranks = model_and_ranks(dataset, overrides, 1)
    assert float(loss_sum(model, ranks[0][0], monkeypatch).detach()) > 0
    assert expected.items() <= asked.items()
