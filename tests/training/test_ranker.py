"""The ranker: what it is given, what it learns from, and that it is measured on what nobody has seen.

Shape legend: Q users, K candidates, F features, R item rows.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import torch

from passerelle.dataset import DatasetContents, FeatureColumn, write_dataset
from passerelle.errors import UserError
from passerelle.features import RankingFeatures
from passerelle.metrics.accuracy import METRICS
from passerelle.splits import EvaluationUsers
from passerelle.topk import exact_topk
from tests.support.datasets import dataset_of, small_recipe
from tests.support.histories import untimed
from training.data.statistics import item_statistics
from training.evaluation.evaluate import read_evaluation
from training.ranker import Candidates, Ranker, load_ranker, rerank, retrieve_candidates, train_ranker
from training.runs.fit import train_in_process
from training.runs.open_run import OpenRun, load_run


def opened_apart(run: OpenRun, path: Path) -> OpenRun:
    """The same run under another path, without opening it again."""
    return replace(run, path=Path(shutil.copytree(run.path, path)))


def with_settings(run: OpenRun, **sections: dict[str, object]) -> OpenRun:
    """The same weights under another configuration."""
    config = run.manifest.config
    changed = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return replace(
        run, manifest=run.manifest.model_copy(update={"config": config.model_copy(update=changed)})
    )


def test_candidates_equal_an_independent_computation(run: OpenRun) -> None:
    """Exact search over queries made one at a time; features of the history before the target, at the time of
    the target.
    """
    dataset, max_history = run.dataset, run.manifest.config.model.max_history
    users = run.users("test")
    candidates = retrieve_candidates(run, users)
    vectors_RD = run.model.item_vectors().numpy()
    statistics = item_statistics(dataset, run.split, 30)
    features = RankingFeatures(
        vectors_RD,
        statistics.counts_R,
        statistics.recent_counts_R,
        dataset.items,
        dataset.manifest.item_features,
    )
    assert candidates.features_QKF.shape == (len(users), 40, len(features.names))
    for index in range(0, len(users), 17):
        seen = dataset.item_rows_E[users.history_start_Q[index] : users.history_end_Q[index]].astype(np.int64)
        history_L = seen[-max_history:]
        with torch.inference_mode():
            query_1D = run.model.encode_histories(untimed(torch.from_numpy(history_L)[None])).numpy()
        allowed_1R = np.ones((1, dataset.num_rows), dtype=bool)
        allowed_1R[0, seen] = False
        rows_1K, scores_1K = exact_topk(query_1D, vectors_RD, 40, allowed_1R)
        assert candidates.rows_QK[index].tolist() == rows_1K[0].tolist()
        assert candidates.scores_QK[index].tolist() == pytest.approx(scores_1K[0].tolist(), abs=1e-4)
        when_ms = int(dataset.timestamps_ms_E[users.history_end_Q[index]])
        expected_KF = features.compute(rows_1K[0], candidates.scores_QK[index], history_L, when_ms)
        assert np.array_equal(candidates.features_QKF[index], expected_KF)
    assert candidates.found_QK.all()


def test_ranker_beats_retrieval_and_is_recorded(ranked_run: OpenRun) -> None:
    written = json.loads((ranked_run.path / "ranker" / "ranker.json").read_text())
    measured = written["test"]
    assert set(measured) == {"model", "ranker"}
    assert set(measured["model"]) == {f"{metric}@{k}" for metric in METRICS for k in (10, 20)}
    assert measured["ranker"]["ndcg@10"] > measured["model"]["ndcg@10"]
    recorded = read_evaluation(ranked_run.path)["test"]
    assert all(measured[scorer].items() <= recorded[scorer].items() for scorer in measured)
    assert tuple(written["features"]) == ranked_run.features.names
    assert {"affinity_50_genres", "value_year", "retrieval_score"} <= set(written["features"])
    booster = load_ranker(ranked_run.path).booster
    assert written["num_trees"] == booster.num_trees() <= 30
    assert booster.num_feature() == len(written["features"])


def test_ranker_never_sees_a_test_event(run: OpenRun, tmp_path: Path) -> None:
    """Poison: with every test event another item at another time, the ranker comes out the same."""
    honest, poisoned = (opened_apart(run, tmp_path / name) for name in ("honest", "poisoned"))
    test_events = run.dataset.offsets_U1[1:] - 1
    rows_E, times_ms_E = run.dataset.item_rows_E.copy(), run.dataset.timestamps_ms_E.copy()
    rows_E[test_events], times_ms_E[test_events] = 2, 2**41
    poisoned = replace(poisoned, dataset=replace(run.dataset, item_rows_E=rows_E, timestamps_ms_E=times_ms_E))
    results = {opened.path.name: train_ranker(opened) for opened in (honest, poisoned)}
    assert (
        load_ranker(honest.path).booster.model_to_string()
        == load_ranker(poisoned.path).booster.model_to_string()
    )
    assert results["honest"] != results["poisoned"], "the poison reached nothing at all"


def test_the_same_seed_gives_the_same_ranker(run: OpenRun, ranked_run: OpenRun, tmp_path: Path) -> None:
    again = opened_apart(run, tmp_path / "again")
    train_ranker(again)
    assert (again.path / "ranker" / "model.txt").read_bytes() == (
        ranked_run.path / "ranker" / "model.txt"
    ).read_bytes()


def test_an_existing_ranker_is_kept_unless_asked(run: OpenRun, tmp_path: Path) -> None:
    own = opened_apart(run, tmp_path / "own")
    train_ranker(own)
    kept = (own.path / "ranker" / "model.txt").stat().st_ino
    with pytest.raises(UserError, match="already exists: pass --overwrite to train the ranker again"):
        train_ranker(own)
    assert (own.path / "ranker" / "model.txt").stat().st_ino == kept
    train_ranker(own, overwrite=True)
    assert (own.path / "ranker" / "model.txt").stat().st_ino != kept


def test_a_run_that_retrieves_nothing_is_refused(run: OpenRun, tmp_path: Path) -> None:
    """With one candidate a user, and nothing learnt, no target is found."""
    config = small_recipe(
        "ranker.num_candidates=1", "training.max_epochs=1", "optimizer.learning_rate=1e-12", "training.seed=5"
    )
    train_in_process("bert4rec", run.dataset, config, tmp_path / "run")
    opened = load_run(tmp_path / "run")
    users = opened.users("validation").take(slice(0, 3))
    few = replace(
        opened,
        split=replace(
            opened.split,
            validation_end_U=opened.split.train_end_U + np.isin(np.arange(240), users.user_rows_Q),
        ),
    )
    with pytest.raises(
        UserError,
        match=r"users have a validation target among their candidates, too few to learn from: train longer",
    ):
        train_ranker(few)
    assert not (tmp_path / "run" / "ranker").exists()


def test_a_run_without_ranker_is_refused(run: OpenRun) -> None:
    with pytest.raises(UserError, match="has no ranker: run `passerelle train-ranker "):
        load_ranker(run.path)


def test_feature_names_that_lightgbm_refuses_are_accepted(run: OpenRun, tmp_path: Path) -> None:
    """People name their columns as they like."""
    source = run.dataset
    dataset = write_dataset(
        tmp_path / "dataset",
        DatasetContents(
            item_rows_E=source.item_rows_E,
            timestamps_ms_E=source.timestamps_ms_E,
            event_types_E=source.event_types_E,
            weights_E=source.weights_E,
            offsets_U1=source.offsets_U1,
            users=source.users,
            items=source.items.select(["item_id", "year"]).rename_columns(
                ["item_id", 'année: "sortie", [1950]']
            ),
            description={
                **{
                    name: getattr(source.manifest, name)
                    for name in ("name", "event_types", "user_features", "config", "quality")
                },
                "item_features": (FeatureColumn(name='année: "sortie", [1950]', kind="numeric"),),
                "title": None,
            },
        ),
    )
    train_in_process("bert4rec", dataset, small_recipe("training.max_epochs=5"), tmp_path / "run")
    train_ranker(load_run(tmp_path / "run"))
    assert (
        'value_année: "sortie", [1950]'
        in json.loads((tmp_path / "run" / "ranker" / "ranker.json").read_text())["features"]
    )


def test_a_user_with_fewer_candidates_than_k(tmp_path: Path) -> None:
    """Of ten items the first user saw all but two: two candidates, and no rows for the empty positions."""
    histories = [[(2 + index, index) for index in range(8)]] + [
        [(2 + (user + step) % 10, step) for step in range(4)] for user in range(30)
    ]
    dataset = dataset_of(tmp_path / "dataset", histories, num_items=10)
    train_in_process(
        "bert4rec",
        dataset,
        small_recipe("training.max_epochs=5", "batches.token_budget=64"),
        tmp_path / "run",
    )
    opened = load_run(tmp_path / "run")
    everything = dataset.offsets_U1[1:]
    candidates = retrieve_candidates(
        opened, EvaluationUsers(np.arange(31), dataset.offsets_U1[:-1], everything, everything)
    )
    assert candidates.found_QK.sum(axis=1).tolist() == [2] + [6] * 30
    assert set(candidates.rows_QK[0]) == {10, 11, 0}
    assert np.isfinite(candidates.features_QKF).all()
    assert not candidates.features_QKF[~candidates.found_QK].any()
    assert np.isneginf(candidates.scores_QK[~candidates.found_QK]).all()
    train_ranker(opened)
    rows_QK, scores_QK = rerank(load_ranker(opened.path).predict, candidates)
    assert set(rows_QK[0, :2]) == {10, 11}
    assert (rows_QK[~candidates.found_QK] == 0).all()
    assert np.isneginf(scores_QK[~candidates.found_QK]).all()


def test_rerank_orders_by_float32_scores(ranked_run: OpenRun) -> None:
    """Scores that differ in float64 alone are ties, and ties keep the order of retrieval."""

    features_QKF = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    parameters = {"num_leaves": 4, "min_data_in_leaf": 1, "min_data_in_bin": 1, "verbosity": -1}
    booster = lightgbm.train(
        parameters, lightgbm.Dataset(features_QKF[0], [0.0, 5.0, 1.0, 7.0]), num_boost_round=1
    )
    leaves_K = np.asarray(booster.predict(features_QKF[0], pred_leaf=True)).ravel().tolist()
    assert sorted(leaves_K) == [0, 1, 2, 3]
    for leaf, score in zip(leaves_K, (1.0, 2.0, 1.0 + 1e-12, 2.0 + 1e-12), strict=True):
        booster.set_leaf_output(0, leaf, score)
    assert len(np.unique(booster.predict(features_QKF[0]))) == 4
    users = ranked_run.users("test").take(slice(0, 1))
    candidates = Candidates(
        users, np.array([[7, 5, 9, 3]]), np.array([[4.0, 3.0, 2.0, 1.0]], dtype=np.float32), features_QKF
    )
    rows_QK, scores_QK = rerank(Ranker(booster, score_scale=0.0).predict, candidates)
    assert rows_QK.tolist() == [[5, 3, 7, 9]]
    assert scores_QK.tolist() == [[2.0, 2.0, 1.0, 1.0]]
    assert scores_QK.dtype == np.float32


def test_the_ranker_is_stored_as_text(ranked_run: OpenRun) -> None:
    """Nothing is pickled: LightGBM's own text gives the same scores after a round trip."""
    candidates = retrieve_candidates(ranked_run, ranked_run.users("test").take(slice(0, 5)))
    text = (ranked_run.path / "ranker" / "model.txt").read_text()
    scores = (
        np.asarray(lightgbm.Booster(model_str=text).predict(candidates.features_QKF[0]))
        + candidates.scores_QK[0]
    )
    assert rerank(load_ranker(ranked_run.path).predict, candidates)[1][0].tolist() == pytest.approx(
        sorted(scores, reverse=True), abs=1e-5
    )


def test_trees_that_learn_nothing_keep_the_order_of_retrieval(run: OpenRun, tmp_path: Path) -> None:
    """No leaf is allowed to be as large as its limit wants it: the trees are constants."""
    results = train_ranker(
        with_settings(opened_apart(run, tmp_path / "run"), ranker={"min_leaf_events": 10**6})
    )
    assert results["ranker"] == results["model"]


def test_trees_start_from_the_logits_of_the_loss(run: OpenRun, tmp_path: Path) -> None:
    cool = with_settings(
        opened_apart(run, tmp_path / "run"), loss={"temperature": 0.25}, ranker={"min_leaf_events": 10**6}
    )
    train_ranker(cool)
    ranker = load_ranker(cool.path)
    candidates = retrieve_candidates(cool, cool.users("test").take(slice(0, 1)))
    constant = float(np.asarray(ranker.booster.predict(candidates.features_QKF[0, :1]))[0])
    assert ranker.predict(candidates.features_QKF[0]).tolist() == pytest.approx(
        (candidates.scores_QK[0] * 4 + constant).tolist(), rel=1e-6
    )


def test_a_ranker_of_an_earlier_version_is_refused(ranked_run: OpenRun, tmp_path: Path) -> None:
    old = opened_apart(ranked_run, tmp_path / "old")
    path = old.path / "ranker" / "ranker.json"
    path.write_text(
        json.dumps(
            {name: value for name, value in json.loads(path.read_text()).items() if name != "score_scale"}
        )
    )
    with pytest.raises(UserError, match=r"earlier version: run `passerelle train-ranker .* --overwrite`"):
        load_ranker(old.path)
