"""Rankings of the whole catalogue and their metrics against slow ones, and popularity by hand.

Shape legend: U users of a dataset, Q users of a part, R item rows, K ranked items.
"""

import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from passerelle.dataset import Dataset
from passerelle.splits import Part, Split, SplitConfig, evaluation_users, make_split
from tests.support.datasets import dataset_of
from tests.support.histories import untimed
from tests.support.slow_ranking import (
    GLOBAL_TIME,
    history_of,
    random_scorer,
    slow_metrics,
    slow_ranking,
    targets_of,
)
from training.data.evaluation_batches import EvaluationBatches
from training.data.statistics import item_statistics
from training.evaluation.baselines.popularity import order_scorer
from training.evaluation.evaluate import rank_users, ranking_metrics
from training.runs.open_run import OpenRun


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("rule", [SplitConfig(), GLOBAL_TIME], ids=lambda rule: rule.rule)
@pytest.mark.parametrize("k", [1, 10, 120])
def test_ranking_and_metrics_match_slow_ones(dataset: Dataset, rule: SplitConfig, part: Part, k: int) -> None:
    users = evaluation_users(make_split(dataset, rule), part)
    scorer, scores_QR = random_scorer(users, dataset.num_rows)
    rows_QK, ranked_scores_QK = rank_users(dataset, users, scorer, k, max_history=5)
    expected = [
        slow_ranking(scores_QR[position], history_of(dataset, users, position), k)
        for position in range(len(users))
    ]
    assert rows_QK.tolist() == expected
    assert np.array_equal(
        ranked_scores_QK, np.where(rows_QK == 0, -np.inf, np.take_along_axis(scores_QR, rows_QK, 1))
    )
    slow = [
        slow_metrics(ranking, targets_of(dataset, users, position), k)
        for position, ranking in enumerate(expected)
    ]
    assert ranking_metrics(dataset, users, rows_QK, (k,)) == pytest.approx(
        {name: np.mean([row[name] for row in slow]) for name in slow[0]}
    )
    several = max(len(targets_of(dataset, users, position)) for position in range(len(users)))
    assert (several > 1) == (rule.rule == "global_time")


def test_repeated_target_counts_once(tmp_path: Path) -> None:
    """Ranking the two items of the last three events first is perfect."""
    dataset = dataset_of(
        tmp_path / "dataset",
        [[(2, 0), (3, 1), (5, 10), (4, 11), (5, 12)], [(2, 0), (3, 2), (4, 10)]],
        num_items=6,
    )
    dates = {
        "validation_start": datetime(1970, 1, 1, 0, 0, 0, 1000),
        "test_start": datetime(1970, 1, 1, 0, 0, 0, 10000),
    }
    users = evaluation_users(make_split(dataset, SplitConfig(rule="global_time", **dates)), "test")
    found = ranking_metrics(dataset, users, np.array([[5, 4, 6], [4, 6, 7]]), (2, 3))
    perfect = {f"{name}@{k}": 1.0 for name in ("recall", "hit_rate", "ndcg", "mrr", "map") for k in (2, 3)}
    assert found == pytest.approx({**perfect, "precision@2": 0.75, "precision@3": 0.5})
    (batch,) = EvaluationBatches(dataset, users, max_history=5, token_budget=100)
    assert batch.num_relevant_B.tolist() == [2, 1]
    assert batch.relevant_rows_G.tolist() == [4, 5, 4]


def test_batched_ranking_equals_single_users(run: OpenRun) -> None:
    users, max_history = run.users("test"), run.manifest.config.model.max_history
    assert np.diff([users.history_start_Q, users.history_end_Q], axis=0).max() > max_history, (
        "no history is cut: the test would pass in vain"
    )
    rows_QK, scores_QK = rank_users(run.dataset, users, run.model.scores, 10, max_history=max_history)
    for position in range(0, len(users), 7):
        history = history_of(run.dataset, users, position)
        with torch.inference_mode():
            query_D = run.model.encode_histories(untimed(torch.tensor([history[-max_history:]])))[0]
            scores_R = (run.model.items.ids.weight @ query_D).numpy()
        assert rows_QK[position].tolist() == slow_ranking(scores_R, history, 10)
        assert scores_QK[position].tolist() == pytest.approx(scores_R[rows_QK[position]].tolist(), abs=1e-4)


def test_seen_items_are_ranked_on_request(dataset: Dataset, split: Split) -> None:
    users = evaluation_users(split, "test")
    scorer, scores_QR = random_scorer(users, dataset.num_rows)
    rows_QK, _ = rank_users(dataset, users, scorer, 120, max_history=5, exclude_seen=False)
    assert rows_QK[3].tolist() == slow_ranking(scores_QR[3], [], 120)


def test_popularity_by_hand(tmp_path: Path) -> None:
    """Counts of training: row 2 four times, row 3 three times, row 4 twice, row 5 once, row 6 never."""
    histories = [
        [(2, 0), (3, 1), (4, 2), (5, 3)],  # test 5: 2, 3 and 4 are seen, 5 is first of what is left
        [(2, 0), (3, 1), (6, 2), (4, 3)],  # test 4: first
        [(2, 0), (3, 1), (4, 2), (6, 3)],  # test 6: after 5
        [(2, 0), (4, 1), (3, 2), (2, 3)],  # test 2 was seen: it is never ranked, and cannot be hit
        [(5, 0), (4, 1)],  # too short to hold anything out
    ]
    dataset = dataset_of(tmp_path / "dataset", histories, num_items=5)
    split = make_split(dataset, SplitConfig())
    counts_R = item_statistics(dataset, split, 30).counts_R
    assert counts_R.tolist() == [0, 0, 4, 3, 2, 1, 0]
    users = evaluation_users(split, "test")
    rows_QK, _ = rank_users(dataset, users, order_scorer(counts_R), 5, max_history=200)
    assert rows_QK.tolist() == [[5, 6, 0, 0, 0], [4, 5, 0, 0, 0], [5, 6, 0, 0, 0], [5, 6, 0, 0, 0]]
    values = ranking_metrics(dataset, users, rows_QK, (1, 5))
    assert values["recall@1"] == 2 / 4
    assert values["recall@5"] == 3 / 4
    assert values["ndcg@5"] == pytest.approx((1 + 1 + 1 / math.log2(3) + 0) / 4)
    assert values["mrr@5"] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)


def test_popularity_ties_are_ordered_by_row(dataset: Dataset, split: Split) -> None:
    users = evaluation_users(split, "test")
    counts_R = item_statistics(dataset, split, 30).counts_R
    assert len(np.unique(counts_R)) < dataset.num_items, "no ties"
    ranked = {k: rank_users(dataset, users, order_scorer(counts_R), k, max_history=5)[0] for k in (5, 100)}
    assert np.array_equal(ranked[5], ranked[100][:, :5])
    for position in range(0, len(users), 11):
        assert ranked[100][position].tolist() == slow_ranking(
            counts_R, history_of(dataset, users, position), 100
        )


def test_several_targets_by_hand(tmp_path: Path) -> None:
    """A global cut leaves three targets to one user, one to another; users without history are out."""
    histories = [
        [(2, 1), (3, 2), (4, 50), (5, 101), (6, 102), (2, 103)],
        [(2, 1), (3, 2), (4, 60), (7, 104)],
        [(2, 105), (3, 106)],
    ]
    dataset = dataset_of(tmp_path / "dataset", histories, num_items=8)
    # The cuts are dates: 1970-01-01 and some milliseconds.
    rule = SplitConfig.model_validate(
        {
            "rule": "global_time",
            "validation_start": "1970-01-01T00:00:00.040Z",
            "test_start": "1970-01-01T00:00:00.100Z",
        }
    )
    users = evaluation_users(make_split(dataset, rule), "test")
    assert users.user_rows_Q.tolist() == [0, 1]
    scores_R = torch.tensor([0.0, 0.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0])
    rows_QK, _ = rank_users(
        dataset, users, lambda batch: scores_R.repeat(len(batch.positions_B), 1), 4, max_history=200
    )
    assert rows_QK.tolist() == [[5, 6, 7, 8], [5, 6, 7, 8]]
    values = ranking_metrics(dataset, users, rows_QK, (2, 4))
    assert values["recall@4"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["hit_rate@2"] == 1 / 2
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert values["ndcg@4"] == pytest.approx(((1 + 1 / math.log2(3)) / ideal + 1 / math.log2(4)) / 2)
    assert values["ndcg@2"] == pytest.approx((1 + 0) / 2)


def test_recall_is_one_when_k_is_the_catalogue_size(run: OpenRun) -> None:
    """No target of this dataset is a seen item, so all are ranked."""
    rows_QK, _ = rank_users(
        run.dataset, run.users("test"), run.model.scores, run.dataset.num_items, max_history=12
    )
    assert (
        ranking_metrics(run.dataset, run.users("test"), rows_QK, (run.dataset.num_items,))["recall@120"]
        == 1.0
    )
