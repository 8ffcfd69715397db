"""Ranking of the whole catalogue and its metrics against slow ones, popularity by hand, and how ranks share the users.

Shape legend: U users of a dataset, Q users of a part, B users of a batch, R item rows, K ranked items, L history length.
"""

import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from passerelle.arrays import Float32Array, FloatArray
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import EvaluationUsers, Part, Split, SplitConfig, evaluation_users, make_split
from tests.support.datasets import dataset_of
from tests.support.histories import untimed
from training.data import evaluation_batches
from training.data.evaluation_batches import EvaluationBatches
from training.data.statistics import item_statistics
from training.evaluation import metric_report as measures
from training.evaluation.baselines.base import Scorer
from training.evaluation.baselines.popularity import order_scorer
from training.evaluation.evaluate import rank_users, ranking_metrics
from training.evaluation.metric_report import batch_auc
from training.model.topk import rank_scores
from training.runs.open_run import OpenRun

GLOBAL_TIME = SplitConfig(rule="global_time", validation_fraction=0.2, test_fraction=0.2)


def history_of(dataset: Dataset, users: EvaluationUsers, place: int) -> list[int]:
    return [
        int(row) for row in dataset.item_rows_E[users.history_start_Q[place] : users.history_end_Q[place]]
    ]


def targets_of(dataset: Dataset, users: EvaluationUsers, place: int) -> list[int]:
    """Each once: an item that is bought twice can be found but once."""
    return sorted(
        {int(row) for row in dataset.item_rows_E[users.history_end_Q[place] : users.target_end_Q[place]]}
    )


def slow_ranking(scores_R: FloatArray, seen: list[int], k: int) -> list[int]:
    """Every item that was not seen, best first, then padding."""
    left = sorted(
        (row for row in range(FIRST_ITEM_ROW, len(scores_R)) if row not in seen),
        key=lambda row: -scores_R[row],
    )
    return (left + [0] * k)[:k]


def slow_metrics(ranking: list[int], targets: list[int], k: int) -> dict[str, float]:
    hits = [place for place, row in enumerate(ranking[:k]) if row in targets]
    gain = sum(1 / math.log2(place + 2) for place in hits)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(targets))))
    first = 1 / (hits[0] + 1) if hits else 0.0
    precisions = [len([hit for hit in hits if hit <= place]) / (place + 1) for place in hits]
    return {
        f"recall@{k}": len(hits) / len(targets),
        f"precision@{k}": len(hits) / k,
        f"hit_rate@{k}": float(bool(hits)),
        f"ndcg@{k}": gain / ideal,
        f"mrr@{k}": first,
        f"map@{k}": sum(precisions) / min(k, len(targets)),
    }


def slow_auc(scores_R: FloatArray, seen: list[int], targets: list[int]) -> float:
    """Mean over pairs of a target and another item that may be ranked; a target that may not is below all."""
    others = [row for row in range(FIRST_ITEM_ROW, len(scores_R)) if row not in seen and row not in targets]
    values = []
    for target in targets:
        wins = [
            float(scores_R[target] > scores_R[row]) + 0.5 * float(scores_R[target] == scores_R[row])
            for row in others
        ]
        values.append(float(np.mean(wins)) if target not in seen else 0.0)
    return float(np.mean(values))


def random_scorer(users: EvaluationUsers, num_rows: int) -> tuple[Scorer, Float32Array]:
    """A different random score for each user and item; the special rows get the highest, and must not be ranked."""
    scores_QR = (
        np.random.default_rng(0)
        .permutation(len(users) * num_rows)
        .reshape(len(users), num_rows)
        .astype(np.float32)
    )
    scores_QR[:, :FIRST_ITEM_ROW] = scores_QR.max() + 1
    return lambda batch: torch.from_numpy(scores_QR[batch.positions_B]), scores_QR


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("rule", [SplitConfig(), GLOBAL_TIME], ids=lambda rule: rule.rule)
@pytest.mark.parametrize("k", [1, 10, 120])
def test_ranking_and_metrics_equal_the_slow_ones(
    dataset: Dataset, rule: SplitConfig, part: Part, k: int
) -> None:
    users = evaluation_users(make_split(dataset, rule), part)
    scorer, scores_QR = random_scorer(users, dataset.num_rows)
    rows_QK, ranked_scores_QK = rank_users(dataset, users, scorer, k, max_history=5)
    expected = [
        slow_ranking(scores_QR[place], history_of(dataset, users, place), k) for place in range(len(users))
    ]
    assert rows_QK.tolist() == expected
    assert np.array_equal(
        ranked_scores_QK, np.where(rows_QK == 0, -np.inf, np.take_along_axis(scores_QR, rows_QK, 1))
    )
    slow = [
        slow_metrics(ranking, targets_of(dataset, users, place), k) for place, ranking in enumerate(expected)
    ]
    assert ranking_metrics(dataset, users, rows_QK, (k,)) == pytest.approx(
        {name: np.mean([row[name] for row in slow]) for name in slow[0]}
    )
    several = max(len(targets_of(dataset, users, place)) for place in range(len(users)))
    assert (several > 1) == (rule.rule == "global_time")


def test_a_repeated_target_is_one_answer(tmp_path: Path) -> None:
    """Whoever ranks the two items of the three last events first is perfect."""
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


def test_model_ranks_as_one_user_at_a_time_does(run: OpenRun) -> None:
    users, max_history = run.users("test"), run.manifest.config.model.max_history
    assert np.diff([users.history_start_Q, users.history_end_Q], axis=0).max() > max_history, (
        "no history is cut: the test would pass in vain"
    )
    rows_QK, scores_QK = rank_users(run.dataset, users, run.model.scores, 10, max_history=max_history)
    for place in range(0, len(users), 7):
        history = history_of(run.dataset, users, place)
        with torch.inference_mode():
            query_D = run.model.encode_histories(untimed(torch.tensor([history[-max_history:]])))[0]
            scores_R = (run.model.items.ids.weight @ query_D).numpy()
        assert rows_QK[place].tolist() == slow_ranking(scores_R, history, 10)
        assert scores_QK[place].tolist() == pytest.approx(scores_R[rows_QK[place]].tolist(), abs=1e-4)


def test_seen_items_may_be_asked_for(dataset: Dataset, split: Split) -> None:
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


def test_popularity_orders_ties_by_row_whatever_k_is(dataset: Dataset, split: Split) -> None:
    users = evaluation_users(split, "test")
    counts_R = item_statistics(dataset, split, 30).counts_R
    assert len(np.unique(counts_R)) < dataset.num_items, "no ties"
    ranked = {k: rank_users(dataset, users, order_scorer(counts_R), k, max_history=5)[0] for k in (5, 100)}
    assert np.array_equal(ranked[5], ranked[100][:, :5])
    for place in range(0, len(users), 11):
        assert ranked[100][place].tolist() == slow_ranking(counts_R, history_of(dataset, users, place), 100)


def test_several_targets_by_hand(tmp_path: Path) -> None:
    """A global cut leaves three targets to one user and one to another; a user without history before it is not evaluated."""
    histories = [
        [(2, 1), (3, 2), (4, 50), (5, 101), (6, 102), (2, 103)],
        [(2, 1), (3, 2), (4, 60), (7, 104)],
        [(2, 105), (3, 106)],
    ]
    dataset = dataset_of(tmp_path / "dataset", histories, num_items=8)
    # the cuts are given as dates: 1970-01-01 and some milliseconds
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


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("token_budget", [1, 40, 512, 10**6])
def test_ranks_share_the_users(dataset: Dataset, split: Split, world_size: int, token_budget: int) -> None:
    """Each user once, with the newest of the history, all that was seen, and the targets; no rank goes without."""
    users, max_history = evaluation_users(split, "test"), 7
    positions = []
    for rank in range(world_size):
        batches = EvaluationBatches(
            dataset,
            users,
            max_history=max_history,
            token_budget=token_budget,
            rank=rank,
            world_size=world_size,
        )
        assert len(batches) == len(list(batches)) > 0
        for batch in batches:
            assert (
                len(batch.positions_B) * (batch.histories.items_BL.shape[1] + 1) <= token_budget
                or len(batch.positions_B) == 1
            )
            for row, place in enumerate(batch.positions_B.tolist()):
                history, items = history_of(dataset, users, place), batch.histories.items_BL[row].tolist()
                assert items == [0] * (len(items) - len(history[-max_history:])) + history[-max_history:]
                assert batch.seen_item_S[batch.seen_row_S == row].tolist() == history
                start, end = batch.relevant_offsets_B1[row : row + 2]
                assert batch.relevant_rows_G[start:end].tolist() == targets_of(dataset, users, place)
            positions += batch.positions_B.tolist()
    assert sorted(positions) == list(range(len(users)))


def test_fewer_groups_than_ranks(dataset: Dataset, split: Split) -> None:
    """All users fit one batch, and there are two ranks: a rank with nothing to validate would make the others wait for ever."""
    users = evaluation_users(split, "validation").take(slice(0, 3))
    shares = [
        EvaluationBatches(dataset, users, max_history=12, token_budget=512, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    assert [[len(batch.positions_B) for batch in batches] for batches in shares] == [[2], [1]]


def test_scores_of_a_large_catalogue_do_not_fill_the_memory(
    dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_batches, "_MAX_SCORES", 10 * dataset.num_rows)
    batches = EvaluationBatches(dataset, evaluation_users(split, "test"), max_history=12, token_budget=10**6)
    assert {len(batch.positions_B) for batch in batches} == {10}


def test_every_item_recalled_when_k_is_the_catalogue(run: OpenRun) -> None:
    """No target of this dataset was seen before, so all are ranked somewhere."""
    rows_QK, _ = rank_users(
        run.dataset, run.users("test"), run.model.scores, run.dataset.num_items, max_history=12
    )
    assert (
        ranking_metrics(run.dataset, run.users("test"), rows_QK, (run.dataset.num_items,))["recall@120"]
        == 1.0
    )


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("chunk_scores", [1, 400, 2**24])
@pytest.mark.parametrize("rule", [SplitConfig(), GLOBAL_TIME], ids=lambda rule: rule.rule)
def test_auc_equals_the_slow_one(
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    rule: SplitConfig,
    chunk_scores: int,
    exclude_seen: bool,
) -> None:
    monkeypatch.setattr(measures, "_MAX_SCORES", chunk_scores)
    users = evaluation_users(make_split(dataset, rule), "test")
    scores_QR = (
        np.random.default_rng(0).integers(0, 9, (len(users), dataset.num_rows)).astype(np.float32)
    )  # many ties
    for batch in EvaluationBatches(dataset, users, max_history=5, token_budget=64):
        scores_BR = torch.from_numpy(scores_QR[batch.positions_B])
        rank_scores(scores_BR, batch, 1, exclude_seen=exclude_seen)
        expected = [
            slow_auc(
                scores_QR[place],
                history_of(dataset, users, place) if exclude_seen else [],
                targets_of(dataset, users, place),
            )
            for place in batch.positions_B.tolist()
        ]
        np.testing.assert_allclose(batch_auc(scores_BR, batch), expected, atol=1e-12)


def test_auc_of_what_cannot_be_ranked(tmp_path: Path) -> None:
    """Test items 3, 2 (seen), and 4 with every other item seen."""
    histories = [[(2, 0), (4, 1), (3, 2)], [(2, 0), (3, 1), (2, 2)], [(2, 0), (3, 1), (4, 2)]]
    dataset = dataset_of(tmp_path / "dataset", histories, num_items=3)
    users = evaluation_users(make_split(dataset, SplitConfig()), "test")
    (batch,) = EvaluationBatches(dataset, users, max_history=5, token_budget=512)
    assert batch.positions_B.tolist() == [0, 1, 2]
    scores_BR = torch.arange(5.0).repeat(3, 1)
    rank_scores(scores_BR, batch, 1)
    assert batch_auc(scores_BR, batch).tolist() == [0.5, 0.0, 0.5]
