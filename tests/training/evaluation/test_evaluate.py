"""What an evaluation measures beside the ranking, what it writes, and what it refuses.

Shape legend: Q users of a part, R item rows, K ranked items.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.metrics.segments import Segment
from passerelle.splits import Split, SplitConfig, evaluation_users, make_split
from tests.support.datasets import dataset_of
from training.evaluation.baselines.markov import Markov
from training.evaluation.evaluate import (
    EvaluationSettings,
    evaluate,
    evaluate_in_detail,
    rank_users,
    ranking_metrics,
    read_details,
    read_evaluation,
    record_evaluation,
)
from training.evaluation.metric_report import Catalogue, describe_catalogue, metric_report
from training.runs.open_run import OpenRun, load_run
from training.runs.run import DETAILS, EVALUATION


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
    assert {name: test_again[name]["ndcg@10"] for name in test} == {
        name: test[name]["ndcg@10"] for name in test
    }
    recorded = read_evaluation(own_run)
    assert recorded == {"test": {**test_again, "ranker": {"ndcg@10": 0.5}}, "validation": validation}
    assert all(
        isinstance(value, float)
        for part in recorded.values()
        for values in part.values()
        for value in values.values()
    )
    assert json.loads((own_run / EVALUATION).read_text()) == recorded


def test_validation_in_training_equals_evaluation(own_run: Path) -> None:
    opened = load_run(own_run)
    values = evaluate(opened, "validation", (10,))["model"]
    assert opened.manifest.validation == {"validation_ndcg@10": pytest.approx(values["ndcg@10"], abs=1e-6)}


def test_evaluation_with_all_settings(own_run: Path) -> None:
    """Numbers, details and files of one evaluation, against the same measures made one at a time."""
    opened = load_run(own_run)
    users, settings = (
        opened.users("test"),
        EvaluationSettings((1, 10), ("markov", "popularity"), with_seen=True, segments=(8, 14)),
    )
    evaluation = evaluate_in_detail(opened, "test", settings)
    assert list(evaluation.metrics) == list(evaluation.details) == ["model", "markov", "popularity"]
    assert read_evaluation(own_run) == {"test": evaluation.metrics}
    assert (
        read_details(own_run) == {"test": evaluation.details} == json.loads((own_run / DETAILS).read_text())
    )

    scorer = Markov().fit(opened.dataset, opened.split)
    values, details = evaluation.metrics["markov"], evaluation.details["markov"]
    for exclude_seen, found in ((True, values), (False, details["with_seen"])):
        rows_QK, _ = rank_users(opened.dataset, users, scorer, 10, max_history=12, exclude_seen=exclude_seen)
        assert ranking_metrics(opened.dataset, users, rows_QK, (1, 10)).items() <= found.items()
        assert found["coverage@10"] == len(np.unique(rows_QK)) / 120
    assert values["ndcg@10"] > details["with_seen"]["ndcg@10"]
    beyond = {
        f"{name}@{k}" for name in ("coverage", "novelty", "popularity_lift", "diversity") for k in (1, 10)
    } - {"diversity@1"}
    assert set(values) == set(details["with_seen"]) == set(details["intervals"]) | beyond
    assert "auc" in details["intervals"]

    lengths_Q = users.history_end_Q - users.history_start_Q
    assert [group["users"] for group in details["segments"].values()] == [
        np.count_nonzero(chosen)
        for chosen in (lengths_Q < 8, (lengths_Q >= 8) & (lengths_Q < 14), lengths_Q >= 14)
    ]
    for metric in details["intervals"]:
        weighted = sum(group["users"] * group[metric] for group in details["segments"].values()) / len(users)
        assert weighted == pytest.approx(values[metric])
    assert (details["fitted_on"], details["hyper_parameters"], details["diversity_of"]) == (
        "train",
        {},
        "categories",
    )
    assert (details["confidence"], details["num_resamples"]) == (0.95, 1000)


def test_intervals_contain_the_means_and_do_not_depend_on_other_settings(own_run: Path) -> None:
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
    assert gain["mean"] == pytest.approx(
        both.metrics["model"]["ndcg@10"] - both.metrics["popularity"]["ndcg@10"]
    )
    assert 0 < gain["low"] < gain["mean"] < gain["high"]


def test_baselines_are_fitted_on_the_configured_events(own_run: Path) -> None:
    """The choice matters for test alone, is told in the details, and numbers of another choice do not stay
    behind.
    """
    opened = load_run(own_run)
    settings = EvaluationSettings((5, 10), ("markov",))
    train = evaluate_in_detail(opened, "test", settings)
    everything = evaluate_in_detail(
        opened, "test", replace(settings, ks=(10,), fit_baselines_on="before_targets")
    )
    assert [each.details["markov"]["fitted_on"] for each in (train, everything)] == [
        "train",
        "before_targets",
    ]
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
        evaluate_in_detail(opened, "validation", EvaluationSettings((10,), ("markov",), fit_on)).metrics[
            "markov"
        ]
        for fit_on in ("train", "before_targets")
    ]
    assert validation[0] == validation[1]


def test_results_of_other_hyper_parameters_are_replaced(own_run: Path) -> None:
    opened, settings = load_run(own_run), EvaluationSettings((5, 10), ("recent_popularity",))
    long = evaluate_in_detail(opened, "test", settings).metrics["recent_popularity"]
    short = evaluate_in_detail(opened, "test", replace(settings, ks=(10,), recent_days=2)).metrics[
        "recent_popularity"
    ]
    assert short["ndcg@10"] != long["ndcg@10"]
    assert read_evaluation(own_run)["test"]["recent_popularity"] == short


def test_diversity_without_categories_uses_item_vectors(
    tmp_path: Path, dataset: Dataset, split: Split
) -> None:
    users = evaluation_users(split, "test")
    vectors_RD = np.ones((dataset.num_rows, 3), dtype=np.float32)
    assert describe_catalogue(dataset, split, users, vectors_RD).unit_RD.shape == (dataset.num_rows, 4), (
        "genres"
    )
    plain = dataset_of(tmp_path / "dataset", [[(2, 0), (3, 1), (4, 2), (4, 3)]], num_items=3)
    plain_split = make_split(plain, SplitConfig())
    catalogue = describe_catalogue(plain, plain_split, evaluation_users(plain_split, "test"), vectors_RD[:5])
    assert catalogue.diversity_of == "model"
    np.testing.assert_allclose(catalogue.unit_RD, [[0, 0, 0], *[[3**-0.5] * 3] * 4])
    assert catalogue.counts_R.tolist() == [0, 0, 1, 1, 0]
    assert catalogue.history_popularity_Q.tolist() == pytest.approx([2 / 3]), "of 2, 3 and 4"


def test_metrics_by_k_and_segment_by_hand() -> None:
    """Three users, lists of two; items 2 to 5 with 8, 4, 2 and 2 events; the first two users have short
    histories.
    """
    catalogue = Catalogue(
        num_items=4,
        counts_R=np.array([0, 0, 8, 4, 2, 2]),
        history_popularity_Q=np.array([2.0, 4.0, 8.0]),
        unit_RD=np.array([[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [-1, 0]], dtype=np.float32),
        diversity_of="model",
    )
    rows_QK = np.array([[2, 3], [3, 4], [2, 5]])
    segments = [Segment(1, 9, np.array([0, 1])), Segment(10, 20, np.array([2]))]
    auc_Q = np.array([1.0, 0.5, 0.0])
    found = metric_report(rows_QK, auc_Q, np.array([2, 4, 3]), np.arange(4), (1, 2), catalogue, segments)
    assert found.plain() == pytest.approx(
        found.plain()
        | {"recall@1": 1 / 3, "recall@2": 2 / 3, "auc": 0.5, "coverage@1": 2 / 4, "coverage@2": 4 / 4}
        | {"novelty@1": (1 + 2 + 1) / 3, "novelty@2": (1.5 + 2.5 + 2) / 3}
        | {
            "popularity_lift@1": (8 + 4 + 8) / 14 - 1,
            "popularity_lift@2": (6 + 3 + 5) / 14 - 1,
            "diversity@2": (0 + 1 + 2) / 3,
        }
    )
    assert "diversity@1" not in found.plain()
    first, second = found.segments["1-9 events"], found.segments["10-20 events"]
    assert first == pytest.approx(
        first
        | {
            "users": 2,
            "recall@1": 1 / 2,
            "recall@2": 1,
            "auc": 0.75,
            "coverage@1": 2 / 4,
            "coverage@2": 3 / 4,
            "novelty@1": 1.5,
        }
        | {"popularity_lift@1": 12 / 6 - 1, "popularity_lift@2": 9 / 6 - 1, "diversity@2": 1 / 2}
    )
    assert second == pytest.approx(
        second
        | {
            "users": 1,
            "recall@2": 0,
            "auc": 0,
            "coverage@2": 2 / 4,
            "popularity_lift@1": 0,
            "popularity_lift@2": 5 / 8 - 1,
        }
    )
    assert set(first) == {"users", *found.plain()}


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
