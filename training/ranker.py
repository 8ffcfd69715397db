"""The ranker: LightGBM (LambdaMART) over retrieval candidates; the only file that imports lightgbm.

Its trees start from the score of retrieval and correct it: a few thousand users with one right answer each
are too few to learn anew the order that the model has learnt from every event.

It learns on the validation targets, with histories and statistics of training alone, and is measured on the
test targets, so nothing it is measured on was seen by it or by the model under it.
Over a refit, it learns from the candidates of the run that the refit was made from.

Shape legend: Q users, K candidates of a user, F features, S = sum of candidates, R item rows.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np

from passerelle.arrays import BoolArray, Float32Array, Int64Array
from passerelle.errors import UserError
from passerelle.features import RETRIEVAL_SCORE
from passerelle.files import new_directory, write_text
from passerelle.ids import PADDING_ROW
from passerelle.metrics import accuracy
from passerelle.progress import Progress, silent
from passerelle.splits import EvaluationUsers
from training.data.evaluation_batches import relevant_items, request_times_ms
from training.evaluation.evaluate import RankingOptions, rank, ranking_metrics, record_evaluation
from training.runs.open_run import OpenRun, load_run
from training.runs.run import RANKER

EVALUATED_KS = (10, 20, 50)

Predictor = Callable[[Float32Array], Float32Array]
"""Returns scores [S] of features [S, F] of candidates, as a `Ranker` or its exported network does."""


@dataclass(frozen=True)
class Ranker:
    """Scores candidates: their retrieval score plus the correction of the trees."""

    booster: lightgbm.Booster
    score_scale: float
    """Retrieval scores are multiplied by it: the inverse of the temperature of the loss, so that they are the
    loss's logits."""

    def predict(self, features_SF: Float32Array) -> Float32Array:
        """Returns scores [S], added in float32 as the exported network adds them."""
        trees_S = np.asarray(self.booster.predict(features_SF)).astype(np.float32)
        return trees_S + features_SF[:, RETRIEVAL_SCORE] * np.float32(self.score_scale)


@dataclass(frozen=True)
class Candidates:
    """Retrieved candidates of some users, best first, with their features.

    A user who has seen nearly everything has fewer than K: the remaining rows and features are 0, the scores
    -inf.
    """

    users: EvaluationUsers
    rows_QK: Int64Array
    scores_QK: Float32Array
    features_QKF: Float32Array

    @property
    def found_QK(self) -> BoolArray:
        """True where there is a candidate."""
        return self.rows_QK != PADDING_ROW


def retrieve_candidates(
    run: OpenRun, users: EvaluationUsers, progress: Progress = silent, stage: str = "features"
) -> Candidates:
    """Exact top candidates of each user (seen items left out) and their features at the time of the
    request.
    """
    config, dataset = run.manifest.config, run.dataset
    num_candidates = min(config.ranker.num_candidates, dataset.num_items)
    options = RankingOptions(num_candidates, config.model.max_history)
    rankings = rank(dataset, users, run.model.scores, options, progress, stage="retrieval")
    rows_QK, scores_QK = rankings.rows_QK, rankings.scores_QK
    features_QKF = np.zeros((*rows_QK.shape, len(run.features.names)), dtype=np.float32)
    times_ms_Q = request_times_ms(dataset, users).tolist()
    for position in range(len(users)):
        end = users.history_end_Q[position]
        start = max(users.history_start_Q[position], end - config.model.max_history)
        history_L = dataset.item_rows_E[start:end].astype(np.int64)
        found = np.count_nonzero(rows_QK[position] != PADDING_ROW)
        features_QKF[position, :found] = run.features.compute(
            rows_QK[position, :found], scores_QK[position, :found], history_L, times_ms_Q[position]
        )
        if position % 100 == 99 or position + 1 == len(users):
            progress(stage, position + 1, len(users))
    return Candidates(users, rows_QK, scores_QK, features_QKF)


def _hits(run: OpenRun, candidates: Candidates) -> BoolArray:
    relevant_G, offsets_Q1 = relevant_items(run.dataset, candidates.users)
    return accuracy.hits(candidates.rows_QK, relevant_G, offsets_Q1)


def train_ranker(
    run: OpenRun, progress: Progress = silent, *, overwrite: bool = False
) -> dict[str, dict[str, float]]:
    """Trains the ranker of a run, measures it on the test targets, and writes it into the run.

    Returns:
        Test metrics of `model` (retrieval order) and `ranker`, over the same candidates.

    Raises:
        UserError: the run has a ranker and `overwrite` is false, fewer than two users have a validation
            target among their candidates, or it was trained on validation events without a run that chose its
            epochs.
    """
    config = run.manifest.config
    if (run.path / RANKER).exists() and not overwrite:
        raise UserError(f"{run.path / RANKER} already exists: pass --overwrite to train the ranker again")
    learner = _learner(run)
    learning = retrieve_candidates(learner, learner.users("validation"), progress)
    hits_QK = _hits(run, learning)
    useful_Q = np.flatnonzero(hits_QK.any(axis=1))
    if len(useful_Q) < 2:
        raise UserError(
            f"{run.path}: {len(useful_Q)} users have a validation target among their candidates, "
            "too few to learn from: train longer"
        )
    shuffled_Q = np.random.default_rng(config.training.seed).permutation(useful_Q)
    num_held_out = max(1, int(config.ranker.holdout_fraction * len(shuffled_Q)))
    score_scale = 1 / config.loss.temperature
    fit_set, held_out_set = (
        _lightgbm_set(learning, hits_QK, chosen_Q, score_scale)
        for chosen_Q in (shuffled_Q[num_held_out:], shuffled_Q[:num_held_out])
    )
    ranker = Ranker(_boost(run, fit_set, held_out_set, progress), score_scale)

    testing = retrieve_candidates(run, run.users("test"), progress, stage="test features")
    ks = tuple(k for k in EVALUATED_KS if k <= testing.rows_QK.shape[1])
    results = {
        "model": ranking_metrics(run.dataset, testing.users, testing.rows_QK, ks),
        "ranker": ranking_metrics(run.dataset, testing.users, rerank(ranker.predict, testing)[0], ks),
    }
    with new_directory(run.path / RANKER, overwrite=overwrite) as scratch:
        ranker.booster.save_model(scratch / "model.txt")
        described = {
            "features": run.features.names,
            "num_trees": ranker.booster.num_trees(),
            "score_scale": score_scale,
            "test": results,
        }
        write_text(scratch / "ranker.json", json.dumps(described, indent=2))
    record_evaluation(run.path, "test", results)
    return results


def _learner(run: OpenRun) -> OpenRun:
    """Returns the run whose candidates the ranker learns from.

    A model was trained on the validation events it was refit on, so their candidates would teach too much.
    """
    if not run.manifest.config.training.include_validation:
        return run
    chosen_by = run.manifest.refit_of
    if chosen_by is None:
        raise UserError(
            f"{run.path} was trained on the validation events that a ranker learns from: "
            "train without them, then use `train --refit`"
        )
    return load_run(Path(chosen_by), run.dataset.path)


def _lightgbm_set(
    candidates: Candidates,
    hits_QK: BoolArray,
    chosen_Q: Int64Array,
    score_scale: float,
) -> lightgbm.Dataset:
    """Features are not named: LightGBM refuses names that JSON would escape, and people may name their
    columns so.
    """
    found_QK = candidates.found_QK[chosen_Q]
    return lightgbm.Dataset(
        candidates.features_QKF[chosen_Q][found_QK],
        hits_QK[chosen_Q][found_QK].astype(np.int32),
        group=found_QK.sum(axis=1),
        init_score=candidates.scores_QK[chosen_Q][found_QK].astype(np.float64) * score_scale,
    )


def _boost(
    run: OpenRun, fit_set: lightgbm.Dataset, held_out_set: lightgbm.Dataset, progress: Progress
) -> lightgbm.Booster:
    config = run.manifest.config
    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "learning_rate": config.ranker.learning_rate,
        "num_leaves": config.ranker.num_leaves,
        "min_data_in_leaf": config.ranker.min_leaf_events,
        "lambda_l2": config.ranker.l2_penalty,
        # it weighs pairs by how near their scores are, and here they start from the model's
        "lambdarank_norm": False,
        "seed": config.training.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
        **({"num_threads": config.training.threads} if config.training.threads else {}),
    }
    trees = config.ranker.num_trees
    booster = lightgbm.train(
        parameters,
        fit_set,
        num_boost_round=trees,
        valid_sets=[held_out_set],
        callbacks=[
            lightgbm.early_stopping(max(10, trees // 10), verbose=False),
            lambda state: progress("boosting", state.iteration + 1, trees),
        ],
    )
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))


def rerank(predict: Predictor, candidates: Candidates) -> tuple[Int64Array, Float32Array]:
    """Candidates [Q, K] in the ranker's order (ties in retrieval order), and their scores in that order.

    Scores are rounded to float32, as they are served, before they are compared: what is a tie there is a tie
    here.
    """
    found_QK = candidates.found_QK
    scores_QK = np.full(found_QK.shape, -np.inf, dtype=np.float32)
    scores_QK[found_QK] = predict(candidates.features_QKF[found_QK])
    order_QK = np.argsort(-scores_QK, axis=1, kind="stable")
    return np.take_along_axis(candidates.rows_QK, order_QK, 1), np.take_along_axis(scores_QK, order_QK, 1)


def load_ranker(run_path: Path) -> Ranker:
    """The ranker of a run.

    Raises:
        UserError: it has not been trained yet, or by a version whose trees did not start from the score of
            retrieval.
    """
    folder = run_path / RANKER
    if not (folder / "model.txt").is_file():
        raise UserError(f"{run_path} has no ranker: run `passerelle train-ranker {run_path}` first")
    described = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
    if "score_scale" not in described:
        raise UserError(
            f"{folder} is of an earlier version: run `passerelle train-ranker {run_path} --overwrite`"
        )
    return Ranker(lightgbm.Booster(model_file=folder / "model.txt"), described["score_scale"])
