"""Targets of training: event types, repeats, and windows without any.

Shape legend: E events.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import Split, SplitConfig, evaluation_users, make_split
from tests.support.datasets import dataset_of, small_recipe
from tests.support.runs import train
from training.config import ObjectiveConfig
from training.data.batches import EpochBatches
from training.data.evaluation_batches import EvaluationBatches, relevant_items
from training.data.statistics import num_targets
from training.data.targets import make_targets, times_before
from training.evaluation.evaluate import evaluate
from training.runs.open_run import load_run

CLICKS = ("objective.kind=causal", "objective.event_types=['view']")
BOOKINGS = ("split.event_types=['purchase']",)


def test_repeats_by_hand(tmp_path: Path) -> None:
    """The same item again, by the same user; another user's do not count."""
    dataset = dataset_of(
        tmp_path / "dataset",
        [[(2, 0), (3, 1), (2, 2), (2, 3)], [(2, 0), (2, 1)]],
        num_items=3,
        weights=[1, 1, 3, 1, 5, 1],
    )
    assert times_before(dataset, np.arange(6)).tolist() == [0, 0, 1, 2, 0, 1]
    assert times_before(dataset, np.array([0, 3, 5])).tolist() == [0, 1, 0]
    weights_E = make_targets(dataset, ObjectiveConfig(repeats="log")).weights_E
    assert weights_E == pytest.approx([1, 1, 3 * np.log2(3 / 2), np.log2(4 / 3), 5, np.log2(3 / 2)])
    assert weights_E[0] + weights_E[2] / 3 + weights_E[3] == pytest.approx(np.log2(1 + 3))
    assert make_targets(dataset, ObjectiveConfig()).weights_E.tolist() == [1, 1, 3, 1, 5, 1]
    assert dataset.weights_E.tolist() == [1, 1, 3, 1, 5, 1]


def test_only_repeats_of_targets_count(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "dataset", [[(2, 0), (2, 1), (2, 2)]], num_items=1)
    manifest = dataset.manifest.model_copy(update={"event_types": ("click", "booking")})
    typed = replace(dataset, manifest=manifest, event_types_E=np.array([1, 0, 1], dtype=np.uint8))
    weights_E = make_targets(
        typed, ObjectiveConfig(kind="causal", event_types=("booking",), repeats="log")
    ).weights_E
    assert weights_E[[0, 2]] == pytest.approx([1, np.log2(3 / 2)])


@pytest.mark.parametrize("world_size", [1, 2])
def test_targets_are_of_the_configured_event_types(dataset: Dataset, split: Split, world_size: int) -> None:
    """Each of them once (but the first of a window), and what leads to it is all of its window."""
    everything, named = small_recipe("objective.kind=causal"), small_recipe(*CLICKS)
    asked: list[int] = []
    for rank in range(world_size):
        for batch in EpochBatches(dataset, split, named, epoch=0, rank=rank, world_size=world_size):
            assert (dataset.event_types_E[batch.target_events_M] == 0).all()
            assert (batch.offsets_B1.diff() >= 1).all() and (
                batch.target_rows_M.numpy() == dataset.item_rows_E[batch.target_events_M]
            ).all()
            windows = (
                np.searchsorted(batch.offsets_B1.numpy(), batch.target_positions_M.numpy(), side="right") - 1
            )
            assert sorted(set(windows.tolist())) == list(range(len(batch.user_rows_B))), (
                "a window that asks for nothing"
            )
            asked += batch.target_events_M.tolist()
    all_E = np.concatenate(
        [batch.target_events_M for batch in EpochBatches(dataset, split, everything, epoch=0)]
    )
    assert sorted(asked) == sorted(all_E[dataset.event_types_E[all_E] == 0].tolist())


def test_target_counts_follow_the_event_types(dataset: Dataset, split: Split) -> None:
    config = small_recipe(*CLICKS)
    rows = np.concatenate(
        [batch.target_rows_M.numpy() for batch in EpochBatches(dataset, split, config, epoch=0)]
    )
    assert (
        num_targets(dataset, split, config).tolist() == np.bincount(rows, minlength=dataset.num_rows).tolist()
    )


def test_evaluation_targets_follow_events_of_other_types(dataset: Dataset) -> None:
    """At the time of the booking; what was only clicked may be recommended, and the encoder is told of it."""
    typed = make_split(dataset, SplitConfig(event_types=("purchase",)))
    users = evaluation_users(typed, "test")
    relevant_G, offsets_Q1 = relevant_items(dataset, users)
    assert np.diff(offsets_Q1).tolist() == [1] * len(users) and len(users) > 100
    clicked_and_allowed = 0
    for batch in EvaluationBatches(dataset, users, max_history=50, token_budget=512):
        own = users.take(batch.positions_B)
        assert (dataset.event_types_E[batch.histories.request_events_B] == 1).all()
        assert batch.histories.request_events_B.tolist() == (own.target_end_Q - 1).tolist()
        times_ms = dataset.timestamps_ms_E[batch.histories.request_events_B]
        assert batch.histories.request_timestamp_ms_B1[:, 0].tolist() == times_ms.tolist()
        assert len(batch.seen_item_S) == (own.history_end_Q - own.history_start_Q).sum()
        clicked_and_allowed += len(batch.seen_item_S) - len(batch.excluded_item_X)
    assert clicked_and_allowed > 100
    assert relevant_G.tolist() == dataset.item_rows_E[users.target_end_Q - 1].tolist()


def test_training_on_clicks_and_validating_on_bookings(dataset: Dataset, tmp_path: Path) -> None:
    """The whole way with one event type for training and another for validation.

    The model finds the ring, far above popularity.
    """
    train(dataset, tmp_path / "run", *CLICKS, *BOOKINGS, "model.event_types=true", "training.max_epochs=30")
    run = load_run(tmp_path / "run")
    figures = evaluate(run, "test", ks=(10,))
    assert run.users("test").is_target_E is not None
    assert figures["model"]["ndcg@10"] > 2 * figures["popularity"]["ndcg@10"], figures


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("objective.event_types=['view']",),
            "objective: event_types = .* has no effect without objective.kind = 'causal'",
        ),
        (
            ("objective.kind=causal", "objective.event_types=['views']"),
            r"objective.event_types: no 'views' among the events of .*: view, purchase",
        ),
        (("query.features=['colour']",), r"query.features: colour: no feature of users"),
        (
            ("objective.kind=causal", "items.kind=tower", "items.features=['colour']"),
            r"items.features: colour: no item feature",
        ),
        (
            ("split.event_types=['buy']",),
            r"split.event_types: no 'buy' among the events of .*: view, purchase",
        ),
    ],
)
def test_unknown_event_types_are_refused(
    overrides: tuple[str, ...], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(dataset, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()
