"""Item counts over training events, weighted, over the last days of training, and as targets."""

from pathlib import Path

import numpy as np
import pytest

from passerelle.arrays import Float64Array
from passerelle.calendar_time import DAY_MS
from passerelle.dataset import Dataset
from passerelle.splits import Split, SplitConfig, make_split
from tests.support.datasets import dataset_of, small_recipe
from training.config import Recipe
from training.data.batches import EpochBatches
from training.data.statistics import item_statistics, num_events, num_targets, sampler_counts


@pytest.mark.parametrize(
    "rule",
    [SplitConfig(), SplitConfig(rule="global_time", validation_fraction=0.2, test_fraction=0.2)],
    ids=lambda r: r.rule,
)
@pytest.mark.parametrize("recent_days", [1, 10, 1000])
def test_counts_equal_a_loop_over_training_events(
    dataset: Dataset, rule: SplitConfig, recent_days: int
) -> None:
    split = make_split(dataset, rule)
    training = [
        event
        for start, end in zip(split.start_U, split.train_end_U, strict=True)
        for event in range(start, end)
    ]
    assert 0 < len(training) < len(dataset.item_rows_E)
    newest_ms = max(int(dataset.timestamps_ms_E[event]) for event in training)
    counts_R, recent_counts_R = np.zeros(dataset.num_rows), np.zeros(dataset.num_rows)
    for event in training:
        counts_R[dataset.item_rows_E[event]] += dataset.weights_E[event]
        if dataset.timestamps_ms_E[event] > newest_ms - recent_days * DAY_MS:
            recent_counts_R[dataset.item_rows_E[event]] += dataset.weights_E[event]
    statistics = item_statistics(dataset, split, recent_days)
    assert statistics.counts_R.tolist() == pytest.approx(counts_R.tolist())
    assert statistics.recent_counts_R.tolist() == pytest.approx(recent_counts_R.tolist())
    assert (recent_counts_R.sum() < counts_R.sum()) == (recent_days < 1000)
    assert not statistics.counts_R[:2].any()


def test_target_counts_by_hand(tmp_path: Path) -> None:
    """Two users of four events, the last two of each held out; one user too short to hold anything out."""
    day = DAY_MS
    histories = [
        [(2, 0), (3, 9 * day), (4, 10 * day), (5, 11 * day)],
        [(2, 8 * day), (2, 10 * day), (6, 30 * day), (6, 31 * day)],
        [(6, 1 * day), (3, 8 * day + 1)],
    ]
    dataset = dataset_of(
        tmp_path / "dataset", histories, num_items=6, weights=[1, 2, 50, 50, 4, 8, 50, 50, 16, 32]
    )
    split = make_split(dataset, SplitConfig())
    statistics = item_statistics(dataset, split, recent_days=2)
    # training ends on day 10, so its last two days begin after day 8
    assert num_events(dataset, split).tolist() == [0, 0, 3, 2, 0, 0, 1, 0]
    assert statistics.counts_R.tolist() == [0, 0, 1 + 4 + 8, 2 + 32, 0, 0, 16, 0]
    assert statistics.recent_counts_R.tolist() == [0, 0, 8, 2 + 32, 0, 0, 0, 0]


def drawn_targets(dataset: Dataset, split: Split, config: Recipe, epochs: int) -> Float64Array:
    """Mean over epochs of how often each item row is a target."""
    batches = (
        batch for epoch in range(epochs) for batch in EpochBatches(dataset, split, config, epoch=epoch)
    )
    rows = np.concatenate([batch.target_rows_M.numpy() for batch in batches])
    return np.bincount(rows, minlength=dataset.num_rows) / epochs


def test_next_items_are_targets_as_often_as_counted(dataset: Dataset, split: Split) -> None:
    config = small_recipe("objective.kind=causal")
    counted_R = num_targets(dataset, split, config)
    assert counted_R.tolist() == drawn_targets(dataset, split, config, epochs=1).tolist()
    assert (counted_R < num_events(dataset, split)).any(), "the first event of a window is no target"


@pytest.mark.parametrize("mask_probability", [0.1, 0.5])
def test_masked_items_are_targets_as_often_as_expected(
    dataset: Dataset, split: Split, mask_probability: float
) -> None:
    """Shares of all targets differ from those of counting events by far more than from the drawn ones."""
    config = small_recipe(
        f"objective.mask_probability={mask_probability}", "objective.last_only_probability=0.4"
    )
    counted_R, drawn_R = (
        num_targets(dataset, split, config),
        drawn_targets(dataset, split, config, epochs=300),
    )
    spread_R = np.sqrt(np.maximum(counted_R, 1e-9) / 300)  # of a sum of Bernoulli draws, at most
    assert (np.abs(drawn_R - counted_R) <= 5 * spread_R).all()
    events_R = num_events(dataset, split) * (counted_R.sum() / num_events(dataset, split).sum())
    assert (np.abs(drawn_R - events_R) > 5 * spread_R).any()


@pytest.mark.parametrize(
    ("overrides", "counted"),
    [
        (["loss.kind=full"], "nothing"),
        (["loss.kind=gbce"], "nothing"),
        (["loss.sampler=uniform"], "nothing"),
        (["loss.sampler=mixed"], "nothing"),
        (["loss.sampler=streaming"], "nothing"),
        (["loss.sampler.kind=in_batch", "loss.sampler.streaming_rate=0.01"], "nothing"),
        (["loss.sampler=in_batch"], "targets"),
        (["loss.sampler=in_batch", "loss.log_q_correction=false"], "targets"),
        (["loss.sampler=popularity"], "events"),
        (["loss.sampler=log_uniform"], "events"),
    ],
    ids=" ".join,
)
def test_sampler_counts_are_those_the_sampler_needs(
    dataset: Dataset, split: Split, overrides: list[str], counted: str
) -> None:
    config = small_recipe("loss.kind=sampled", *overrides)
    expected = {
        "nothing": np.zeros(dataset.num_rows),
        "events": num_events(dataset, split),
        "targets": num_targets(dataset, split, config),
    }
    assert sampler_counts(dataset, split, config).tolist() == expected[counted].tolist()
