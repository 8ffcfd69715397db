"""Full-catalogue evaluation of a run, with baselines beside it, through one code path.

Two files of the run hold the results, both by part, then scorer (`model`, `ranker`, or a baseline's name):

Two files of the run hold the results, by part, then by scorer (`model`, `ranker`, or a baseline's name):
    evaluation_details.json   how the scorer was fitted, confidence intervals, and where asked for segments
                              and `with_seen`

Shape legend: B users of a batch, Q users in all, Q1 = Q + 1, R item rows, K ranked items, G relevant
items.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from passerelle.arrays import Float32Array, Float64Array, Int64Array
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.files import write_text
from passerelle.metrics import accuracy
from passerelle.metrics.segments import Segment, length_segments
from passerelle.progress import Progress, silent
from passerelle.splits import EvaluationUsers, Part
from training.data.evaluation_batches import EvaluationBatches, relevant_items
from training.data.windows import with_validation
from training.evaluation.baselines import RECENT_DAYS, make_baselines
from training.evaluation.baselines.base import Scorer, hyper_parameters
from training.evaluation.metric_report import (
    MetricReport,
    batch_auc,
    confidence,
    describe_catalogue,
    metric_report,
)
from training.model.topk import rank_scores
from training.runs.open_run import OpenRun
from training.runs.run import DETAILS, EVALUATION

DEFAULT_KS = (10, 20, 50, 100)
EVALUATION_TOKEN_BUDGET = 25_600

FitOn = Literal["train", "before_targets"]


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure in addition to the accuracy of the model."""

    ks: tuple[int, ...] | None = None
    """Cut-offs; without it those of `DEFAULT_KS` that the catalogue is large enough for."""
    baselines: tuple[str, ...] = ("popularity",)
    """Names from `training.evaluation.baselines.BASELINES`, or `all`."""
    fit_baselines_on: FitOn = "train"
    """Events that baselines learn from, histories at the time of ranking being the same for all.
    `train`: what the model was trained on.
    `before_targets`: all events before the evaluated part, so that for the test part validation events are
    learnt from too, as published tables of baselines often do; for the validation part the two are the same.
    """
    recent_days: int = RECENT_DAYS
    """Days that the baseline `recent_popularity` looks back."""
    with_seen: bool = False
    """Measure everything a second time with seen items left in the ranking."""
    segments: tuple[int, ...] | Literal["terciles"] | None = None
    """Cut users by length of history: edges (`length_segments`), or into thirds."""


@dataclass(frozen=True)
class Evaluation:
    """The results, as they are written into the run."""

    metrics: dict[str, dict[str, float]]
    """Scorer -> metric -> value, the model first; seen items are not ranked."""
    details: dict[str, dict[str, Any]]
    """Scorer -> `fitted_on`, `hyper_parameters` of a baseline, `diversity_of`, what `confidence` gives, and
    where asked for `segments` (`MetricReport.segments`) and `with_seen` (metric -> value)."""


@dataclass(frozen=True)
class RankingOptions:
    """Options of ranking the catalogue for users."""

    k: int
    """Items to keep."""
    max_history: int
    """Newest items of a history that a scorer is given."""
    exclude_seen: bool = True
    """Leave out items of the history."""
    with_auc: bool = False
    """Compute the AUC of the whole ranking too."""


@dataclass(frozen=True)
class Rankings:
    """The k best items of each user, best first."""

    rows_QK: Int64Array
    scores_QK: Float32Array
    auc_Q: Float64Array
    """Zeros where it is not asked for."""


@torch.inference_mode()
def rank(
    dataset: Dataset,
    users: EvaluationUsers,
    scorer: Scorer,
    options: RankingOptions,
    progress: Progress = silent,
    *,
    stage: str = "ranking",
) -> Rankings:
    """Returns rankings over the whole catalogue, in the order of `users`."""
    rows_QK = np.zeros((len(users), options.k), dtype=np.int64)
    scores_QK = np.zeros((len(users), options.k), dtype=np.float32)
    auc_Q = np.zeros(len(users))
    done = 0
    for batch in EvaluationBatches(
        dataset, users, max_history=options.max_history, token_budget=EVALUATION_TOKEN_BUDGET
    ):
        scores_BR = scorer(batch)
        rows_BK, scores_BK = rank_scores(scores_BR, batch, options.k, exclude_seen=options.exclude_seen)
        rows_QK[batch.positions_B], scores_QK[batch.positions_B] = rows_BK.numpy(), scores_BK.numpy()
        if options.with_auc:
            # rank_scores has set what is not ranked to -inf
            auc_Q[batch.positions_B] = batch_auc(scores_BR, batch)
        done += len(batch.positions_B)
        progress(stage, done, len(users))
    return Rankings(rows_QK, scores_QK, auc_Q)


def rank_users(
    dataset: Dataset,
    users: EvaluationUsers,
    scorer: Scorer,
    k: int,
    *,
    max_history: int,
    exclude_seen: bool = True,
) -> tuple[Int64Array, Float32Array]:
    """Returns rows [Q, K] and scores [Q, K] of the k best items of each user: `rank` without progress or
    AUC.
    """
    rankings = rank(dataset, users, scorer, RankingOptions(k, max_history, exclude_seen))
    return rankings.rows_QK, rankings.scores_QK


def ranking_metrics(
    dataset: Dataset, users: EvaluationUsers, rows_QK: Int64Array, ks: tuple[int, ...]
) -> dict[str, float]:
    """Returns every metric at every k of given rankings."""
    relevant_G, offsets_Q1 = relevant_items(dataset, users)
    return accuracy.mean_metrics(accuracy.hits(rows_QK, relevant_G, offsets_Q1), np.diff(offsets_Q1), ks)


def evaluate(
    run: OpenRun, part: Part, ks: tuple[int, ...] | None = None, progress: Progress = silent
) -> dict[str, dict[str, float]]:
    """Scorer -> metric -> value of the model and of popularity: `evaluate_in_detail` with its defaults,
    without the details.
    """
    return evaluate_in_detail(run, part, EvaluationSettings(ks), progress).metrics


def evaluate_in_detail(
    run: OpenRun, part: Part, settings: EvaluationSettings = EvaluationSettings(), progress: Progress = silent
) -> Evaluation:
    """Measures the model and baselines on a part, and writes the results into the run.

    Raises:
        UserError: a k is below 1 or above the number of items, a baseline is not known or cannot be fitted,
            or segments do not rise.
    """
    ks = _cut_offs(settings.ks, run.dataset.num_items)
    baselines = make_baselines(settings.baselines, settings.recent_days)
    users = run.users(part)
    segments = _segments(users, settings)
    catalogue = describe_catalogue(run.dataset, run.split, users, run.vectors_RD)
    relevant_G, offsets_Q1 = relevant_items(run.dataset, users)
    # All are fitted before anything is ranked, so that one that cannot be is refused at once.
    fitted_on: FitOn = (
        "before_targets" if run.manifest.config.training.include_validation else settings.fit_baselines_on
    )
    fitting = with_validation(run.split) if fitted_on == "before_targets" and part == "test" else run.split
    for done, baseline in enumerate(baselines.values()):
        progress("fitting baselines", done, len(baselines))
        baseline.fit(run.dataset, fitting)
    progress("fitting baselines", len(baselines), len(baselines))

    def report_of(stage: str, scorer: Scorer, *, exclude_seen: bool) -> MetricReport:
        options = RankingOptions(max(ks), run.manifest.config.model.max_history, exclude_seen, with_auc=True)
        rankings = rank(run.dataset, users, scorer, options, progress, stage=stage)
        return metric_report(
            rankings.rows_QK, rankings.auc_Q, relevant_G, offsets_Q1, ks, catalogue, segments
        )

    evaluation = Evaluation({}, {})
    model: MetricReport | None = None
    scorers: dict[str, Scorer] = {"model": run.model.scores, **baselines}
    for name, scorer in scorers.items():
        report = report_of(name, scorer, exclude_seen=True)
        # The same draws for each scorer: an interval does not depend on what else was asked for.
        details = confidence(report, model, np.random.default_rng(run.manifest.config.training.seed))
        details["fitted_on"] = fitted_on if name in baselines else run.manifest.trained_on
        details["diversity_of"] = catalogue.diversity_of
        if name in baselines:
            details["hyper_parameters"] = hyper_parameters(baselines[name])
        if segments:
            details["segments"] = report.segments
        if settings.with_seen:
            details["with_seen"] = report_of(f"{name}, with seen items", scorer, exclude_seen=False).plain()
        evaluation.metrics[name], evaluation.details[name] = report.plain(), details
        model = model or report
    before = read_details(run.path).get(part, {})
    changed = {
        name
        for name, details in evaluation.details.items()
        if _fitting(before.get(name, details)) != _fitting(details)
    }
    record_evaluation(run.path, part, evaluation.metrics, forget=changed)
    _record_details(run.path, part, evaluation.details)
    return evaluation


def _fitting(details: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what the numbers of a scorer depend on, apart from the part."""
    return details["fitted_on"], details.get("hyper_parameters")


def _cut_offs(ks: tuple[int, ...] | None, num_items: int) -> tuple[int, ...]:
    if ks is None:
        return tuple(k for k in DEFAULT_KS if k <= num_items) or (num_items,)
    if min(ks) < 1 or max(ks) > num_items:
        raise UserError(
            f"--k {','.join(map(str, ks))}: each must lie between 1 and the {num_items} items "
            "of the catalogue"
        )
    return ks


def _segments(users: EvaluationUsers, settings: EvaluationSettings) -> list[Segment]:
    if settings.segments is None:
        return []
    lengths_Q = users.history_end_Q - users.history_start_Q
    return length_segments(lengths_Q, None if settings.segments == "terciles" else settings.segments)


def record_evaluation(
    run_path: Path, part: Part, results: dict[str, dict[str, float]], forget: Collection[str] = ()
) -> None:
    """Merges results into the run's `evaluation.json`, by part, scorer and metric.

    Args:
        forget: scorers whose earlier numbers are dropped first, because they were fitted otherwise.
    """
    recorded = read_evaluation(run_path)
    measured = recorded.setdefault(part, {})
    for scorer, values in results.items():
        measured[scorer] = {**({} if scorer in forget else measured.get(scorer, {})), **values}
    write_text(run_path / EVALUATION, json.dumps(recorded, indent=2) + "\n")


def read_evaluation(run_path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the results so far: part -> scorer -> metric -> value."""
    path = run_path / EVALUATION
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _record_details(run_path: Path, part: Part, details: dict[str, dict[str, Any]]) -> None:
    """Replaces the details of the given scorers, and of no other, in the run's `evaluation_details.json`."""
    recorded = read_details(run_path)
    recorded.setdefault(part, {}).update(details)
    write_text(run_path / DETAILS, json.dumps(recorded, indent=2) + "\n")


def read_details(run_path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the details so far: part -> scorer -> `Evaluation.details`."""
    path = run_path / DETAILS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
