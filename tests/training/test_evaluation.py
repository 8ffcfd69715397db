"""Ranking of the whole catalogue against a slow oracle, popularity by hand, and what is written.

Shape legend: U users of a dataset, Q users of a part, B users of a batch, R item rows, K ranked items, L history length.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import EvaluationUsers, Part, Split, SplitConfig, evaluation_users, make_split
from tests.datasets import dataset_of
from tests.histories import untimed
from training import evaluation_batches, measures
from training.baselines.base import Scorer
from training.baselines.markov import Markov
from training.baselines.popularity import order_scorer
from training.evaluation import (
    DETAILS,
    EVALUATION,
    EvaluationSettings,
    OpenRun,
    evaluate,
    evaluate_in_detail,
    load_run,
    model_scorer,
    rank_users,
    ranking_metrics,
    read_details,
    read_evaluation,
    record_evaluation,
)
from training.evaluation_batches import EvaluationBatches
from training.measures import batch_auc, describe_catalogue
from training.ranking import rank_scores
from training.statistics import item_statistics

GLOBAL_TIME = SplitConfig(rule="global_time", validation_fraction=0.2, test_fraction=0.2)


def history_of(dataset: Dataset, users: EvaluationUsers, place: int) -> list[int]:
    return [int(row) for row in dataset.item_rows_E[users.history_start_Q[place] : users.history_end_Q[place]]]


def targets_of(dataset: Dataset, users: EvaluationUsers, place: int) -> list[int]:
    return [int(row) for row in dataset.item_rows_E[users.history_end_Q[place] : users.target_end_Q[place]]]


def slow_ranking(scores_R: npt.NDArray[np.floating], seen: list[int], k: int) -> list[int]:
    """Every item that was not seen, best first, then padding."""
    left = sorted((row for row in range(FIRST_ITEM_ROW, len(scores_R)) if row not in seen), key=lambda row: -scores_R[row])
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


def slow_auc(scores_R: npt.NDArray[np.floating], seen: list[int], targets: list[int]) -> float:
    """Mean over pairs of a target and another item that may be ranked; a target that may not is below all."""
    others = [row for row in range(FIRST_ITEM_ROW, len(scores_R)) if row not in seen and row not in targets]
    values = []
    for target in targets:
        wins = [float(scores_R[target] > scores_R[row]) + 0.5 * float(scores_R[target] == scores_R[row]) for row in others]
        values.append(float(np.mean(wins)) if target not in seen else 0.0)
    return float(np.mean(values))


def random_scorer(users: EvaluationUsers, num_rows: int) -> tuple[Scorer, npt.NDArray[np.float32]]:
    """A different random score for each user and item; the special rows get the highest, and must not be ranked."""
    scores_QR = np.random.default_rng(0).permutation(len(users) * num_rows).reshape(len(users), num_rows).astype(np.float32)
    scores_QR[:, :FIRST_ITEM_ROW] = scores_QR.max() + 1
    return lambda batch: torch.from_numpy(scores_QR[batch.positions_B]), scores_QR


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("rule", [SplitConfig(), GLOBAL_TIME], ids=lambda rule: rule.rule)
@pytest.mark.parametrize("k", [1, 10, 120])
def test_ranking_and_metrics_equal_the_slow_ones(dataset: Dataset, rule: SplitConfig, part: Part, k: int) -> None:
    users = evaluation_users(make_split(dataset, rule), part)
    scorer, scores_QR = random_scorer(users, dataset.num_rows)
    rows_QK, ranked_scores_QK = rank_users(dataset, users, scorer, k, max_history=5)
    expected = [slow_ranking(scores_QR[place], history_of(dataset, users, place), k) for place in range(len(users))]
    assert rows_QK.tolist() == expected
    assert np.array_equal(ranked_scores_QK, np.where(rows_QK == 0, -np.inf, np.take_along_axis(scores_QR, rows_QK, 1)))
    slow = [slow_metrics(ranking, targets_of(dataset, users, place), k) for place, ranking in enumerate(expected)]
    assert ranking_metrics(dataset, users, rows_QK, (k,)) == pytest.approx({name: np.mean([row[name] for row in slow]) for name in slow[0]})
    several = max(len(targets_of(dataset, users, place)) for place in range(len(users)))
    assert (several > 1) == (rule.rule == "global_time")


def test_model_ranks_as_one_user_at_a_time_does(run: OpenRun) -> None:
    users, max_history = run.users("test"), run.manifest.config.model.max_history
    assert np.diff([users.history_start_Q, users.history_end_Q], axis=0).max() > max_history, (
        "no history is cut: the test would pass in vain"
    )
    rows_QK, scores_QK = rank_users(run.dataset, users, model_scorer(run.model), 10, max_history=max_history)
    for place in range(0, len(users), 7):
        history = history_of(run.dataset, users, place)
        with torch.inference_mode():
            query_D = run.model.encode_histories(untimed(torch.tensor([history[-max_history:]])))[0]
            scores_R = (run.model.table_RD @ query_D).numpy()
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
        {"rule": "global_time", "validation_start": "1970-01-01T00:00:00.040Z", "test_start": "1970-01-01T00:00:00.100Z"}
    )
    users = evaluation_users(make_split(dataset, rule), "test")
    assert users.user_rows_Q.tolist() == [0, 1]
    scores_R = torch.tensor([0.0, 0.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0])
    rows_QK, _ = rank_users(dataset, users, lambda batch: scores_R.repeat(len(batch.positions_B), 1), 4, max_history=200)
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
        batches = EvaluationBatches(dataset, users, max_history=max_history, token_budget=token_budget, rank=rank, world_size=world_size)
        assert len(batches) == len(list(batches)) > 0
        for batch in batches:
            assert len(batch.positions_B) * (batch.histories.items_BL.shape[1] + 1) <= token_budget or len(batch.positions_B) == 1
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
    shares = [EvaluationBatches(dataset, users, max_history=12, token_budget=512, rank=rank, world_size=2) for rank in (0, 1)]
    assert [[len(batch.positions_B) for batch in batches] for batches in shares] == [[2], [1]]


def test_scores_of_a_large_catalogue_do_not_fill_the_memory(dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_batches, "_MOST_SCORES", 10 * dataset.num_rows)
    batches = EvaluationBatches(dataset, evaluation_users(split, "test"), max_history=12, token_budget=10**6)
    assert {len(batch.positions_B) for batch in batches} == {10}


@pytest.mark.parametrize("ks", [(0,), (-1, 10), (121,), (10, 1000)])
def test_k_outside_the_catalogue_is_refused(run: OpenRun, ks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"each must lie between 1 and the 120 items of the catalogue"):
        evaluate(run, "test", ks)
    assert not (run.path / EVALUATION).exists()


def test_evaluation_is_recorded_by_part_and_scorer(own_run: Path) -> None:
    opened = load_run(own_run)
    test = evaluate(opened, "test", (10,))
    record_evaluation(own_run, "test", {"ranker": {"ndcg@10": 0.5}})
    test_again = evaluate(opened, "test", (10, 120))
    validation = evaluate(opened, "validation", (10,))
    assert {name: test_again[name]["ndcg@10"] for name in test} == {name: test[name]["ndcg@10"] for name in test}
    recorded = read_evaluation(own_run)
    assert recorded == {"test": {**test_again, "ranker": {"ndcg@10": 0.5}}, "validation": validation}
    assert all(isinstance(value, float) for part in recorded.values() for values in part.values() for value in values.values())
    assert json.loads((own_run / EVALUATION).read_text()) == recorded


def test_validation_in_training_is_the_same_measure(own_run: Path) -> None:
    opened = load_run(own_run)
    values = evaluate(opened, "validation", (10,))["model"]
    assert opened.manifest.validation == {"validation_ndcg@10": pytest.approx(values["ndcg@10"], abs=1e-6)}


def test_every_item_recalled_when_k_is_the_catalogue(run: OpenRun) -> None:
    """No target of this dataset was seen before, so all are ranked somewhere."""
    rows_QK, _ = rank_users(run.dataset, run.users("test"), model_scorer(run.model), run.dataset.num_items, max_history=12)
    assert ranking_metrics(run.dataset, run.users("test"), rows_QK, (run.dataset.num_items,))["recall@120"] == 1.0


def test_popularity_knows_nothing_held_out(dataset: Dataset, split: Split) -> None:
    """Poison: the counts are the same when every held-out event is of another item."""
    held_out_E = np.ones(len(dataset.item_rows_E), dtype=bool)
    for start, end in zip(split.start_U, split.train_end_U, strict=True):
        held_out_E[start:end] = False
    poisoned = replace(dataset, item_rows_E=np.where(held_out_E, FIRST_ITEM_ROW, dataset.item_rows_E).astype(np.int32))
    assert np.array_equal(item_statistics(poisoned, split, 30).counts_R, item_statistics(dataset, split, 30).counts_R)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("chunk_scores", [1, 400, 2**24])
@pytest.mark.parametrize("rule", [SplitConfig(), GLOBAL_TIME], ids=lambda rule: rule.rule)
def test_auc_equals_the_slow_one(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, rule: SplitConfig, chunk_scores: int, exclude_seen: bool
) -> None:
    monkeypatch.setattr(measures, "_MOST_SCORES", chunk_scores)
    users = evaluation_users(make_split(dataset, rule), "test")
    scores_QR = np.random.default_rng(0).integers(0, 9, (len(users), dataset.num_rows)).astype(np.float32)  # many ties
    for batch in EvaluationBatches(dataset, users, max_history=5, token_budget=64):
        scores_BR = torch.from_numpy(scores_QR[batch.positions_B])
        rank_scores(scores_BR, batch, 1, exclude_seen=exclude_seen)
        expected = [
            slow_auc(scores_QR[place], history_of(dataset, users, place) if exclude_seen else [], targets_of(dataset, users, place))
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


def test_everything_that_can_be_asked_for(own_run: Path) -> None:
    """Numbers, details and files of one evaluation, against the same measures made one at a time."""
    opened = load_run(own_run)
    users, settings = opened.users("test"), EvaluationSettings((1, 10), ("markov", "popularity"), with_seen=True, segments=(8, 14))
    evaluation = evaluate_in_detail(opened, "test", settings)
    assert list(evaluation.metrics) == list(evaluation.details) == ["model", "markov", "popularity"]
    assert read_evaluation(own_run) == {"test": evaluation.metrics}
    assert read_details(own_run) == {"test": evaluation.details} == json.loads((own_run / DETAILS).read_text())

    scorer = Markov().fit(opened.dataset, opened.split)
    values, details = evaluation.metrics["markov"], evaluation.details["markov"]
    for exclude_seen, found in ((True, values), (False, details["with_seen"])):
        rows_QK, _ = rank_users(opened.dataset, users, scorer, 10, max_history=12, exclude_seen=exclude_seen)
        assert ranking_metrics(opened.dataset, users, rows_QK, (1, 10)).items() <= found.items()
        assert found["coverage@10"] == len(np.unique(rows_QK)) / 120
    assert values["ndcg@10"] > details["with_seen"]["ndcg@10"]
    beyond = {f"{name}@{k}" for name in ("coverage", "novelty", "popularity_lift", "diversity") for k in (1, 10)} - {"diversity@1"}
    assert set(values) == set(details["with_seen"]) == set(details["intervals"]) | beyond
    assert "auc" in details["intervals"]

    lengths_Q = users.history_end_Q - users.history_start_Q
    assert [group["users"] for group in details["segments"].values()] == [
        np.count_nonzero(chosen) for chosen in (lengths_Q < 8, (lengths_Q >= 8) & (lengths_Q < 14), lengths_Q >= 14)
    ]
    for metric in details["intervals"]:
        weighted = sum(group["users"] * group[metric] for group in details["segments"].values()) / len(users)
        assert weighted == pytest.approx(values[metric])
    assert (details["fitted_on"], details["hyper_parameters"], details["diversity_of"]) == ("train", {}, "categories")
    assert (details["confidence"], details["num_resamples"]) == (0.95, 1000)


def test_intervals_hold_the_means_and_do_not_depend_on_what_else_is_asked_for(own_run: Path) -> None:
    opened = load_run(own_run)
    alone = evaluate_in_detail(opened, "test", EvaluationSettings((10,), ()))
    assert list(alone.metrics) == ["model"]
    assert "model_minus_this" not in alone.details["model"]
    both = evaluate_in_detail(opened, "test", EvaluationSettings((10,)))
    assert both.details["model"] == alone.details["model"]
    for scorer, details in both.details.items():
        for metric, ends in details["intervals"].items():
            assert ends["low"] <= both.metrics[scorer][metric] <= ends["high"]
    gain = both.details["popularity"]["model_minus_this"]["ndcg@10"]
    assert gain["mean"] == pytest.approx(both.metrics["model"]["ndcg@10"] - both.metrics["popularity"]["ndcg@10"])
    assert 0 < gain["low"] < gain["mean"] < gain["high"]


def test_what_baselines_are_fitted_on(own_run: Path) -> None:
    """The choice matters for test alone, is told in the details, and numbers of another choice do not stay behind."""
    opened = load_run(own_run)
    settings = EvaluationSettings((5, 10), ("markov",))
    train = evaluate_in_detail(opened, "test", settings)
    everything = evaluate_in_detail(opened, "test", replace(settings, ks=(10,), fit_baselines_on="before_targets"))
    assert [each.details["markov"]["fitted_on"] for each in (train, everything)] == ["train", "before_targets"]
    assert [each.details["model"]["fitted_on"] for each in (train, everything)] == ["train", "train"]
    rows_QK, _ = rank_users(
        opened.dataset,
        opened.users("test"),
        Markov().fit(opened.dataset, replace(opened.split, train_end_U=opened.split.validation_end_U)),
        10,
        max_history=12,
    )
    expected = ranking_metrics(opened.dataset, opened.users("test"), rows_QK, (10,))
    assert expected.items() <= everything.metrics["markov"].items()
    assert train.metrics["markov"]["ndcg@10"] != expected["ndcg@10"]
    recorded = read_evaluation(own_run)["test"]
    assert recorded["markov"] == everything.metrics["markov"], "ndcg@5 was fitted on other events"
    assert recorded["model"] == {**train.metrics["model"], **everything.metrics["model"]}

    validation = [
        evaluate_in_detail(opened, "validation", EvaluationSettings((10,), ("markov",), fit_on)).metrics["markov"]
        for fit_on in ("train", "before_targets")
    ]
    assert validation[0] == validation[1]


def test_diversity_needs_no_categories(tmp_path: Path, dataset: Dataset, split: Split) -> None:
    users = evaluation_users(split, "test")
    vectors_RD = np.ones((dataset.num_rows, 3), dtype=np.float32)
    assert describe_catalogue(dataset, split, users, vectors_RD).vectors_RD.shape == (dataset.num_rows, 4), "genres"
    plain = dataset_of(tmp_path / "dataset", [[(2, 0), (3, 1), (4, 2), (4, 3)]], num_items=3)
    plain_split = make_split(plain, SplitConfig())
    catalogue = describe_catalogue(plain, plain_split, evaluation_users(plain_split, "test"), vectors_RD[:5])
    assert (catalogue.diversity_of, catalogue.vectors_RD.tolist()) == ("model", [[1, 1, 1]] * 5)
    assert catalogue.counts_R.tolist() == [0, 0, 1, 1, 0]
    assert (catalogue.history_rows_S.tolist(), catalogue.history_offsets_Q1.tolist()) == ([2, 3, 4], [0, 3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EvaluationSettings(baselines=("top",)), "baseline 'top': not one of popularity"),
        (EvaluationSettings(segments=(9, 3)), "segments 9,3: lengths of history must rise"),
    ],
)
def test_impossible_settings_are_refused(run: OpenRun, settings: EvaluationSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_in_detail(run, "test", settings)
    assert not (run.path / EVALUATION).exists()
