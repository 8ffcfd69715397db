"""Full-catalogue evaluation of a run, with the popularity baseline beside it, through one code path.

Shape legend: B users of a batch, Q users in all, Q1 = Q + 1, R item rows, K ranked items, G relevant items.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from passerelle import metrics
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.files import write_text
from passerelle.progress import Progress, silent
from passerelle.splits import EvaluationUsers, Part, Split, evaluation_users, make_split
from training.evaluation_batches import EvaluationBatch, EvaluationBatches
from training.ranking import rank_scores
from training.run import RunManifest, load_model, open_run, open_run_dataset
from training.sequence_model import SequenceModel
from training.statistics import item_statistics
from training.windows import Windows, gather_ragged

EVALUATION = "evaluation.json"
DEFAULT_KS = (10, 20, 50, 100)
EVALUATION_TOKEN_BUDGET = 25_600

Scorer = Callable[[EvaluationBatch], Tensor]
"""Scores [B, R] of every item row for the users of a batch."""


@dataclass(frozen=True)
class OpenRun:
    """Everything evaluation, the ranker and export need of a run."""

    path: Path
    manifest: RunManifest
    dataset: Dataset
    split: Split
    model: SequenceModel

    def users(self, part: Part) -> EvaluationUsers:
        return evaluation_users(self.split, part)


def load_run(path: Path, dataset_path: Path | None = None) -> OpenRun:
    """Open a finished run with its dataset and its best weights.

    Raises:
        UserError: the run is not finished or altered, or its dataset is gone or another.
    """
    manifest = open_run(path)
    dataset = open_run_dataset(manifest, dataset_path)
    return OpenRun(path, manifest, dataset, make_split(dataset, manifest.config.split), load_model(path, manifest, dataset))


def model_scorer(model: SequenceModel) -> Scorer:
    """Inner products of the user's query and every item vector."""
    return lambda batch: (model.encode_histories(batch.histories) @ model.table_RD.T).float()


def popularity_scorer(counts_R: npt.NDArray[np.float64]) -> Scorer:
    """The same scores for everybody, by how often each item occurs in training; ties by lower row, as in serving, whatever k is."""
    scores_R = torch.empty(len(counts_R), dtype=torch.float64)
    scores_R[torch.from_numpy(np.argsort(-counts_R, kind="stable"))] = torch.arange(len(counts_R), 0, -1, dtype=torch.float64)
    return lambda batch: scores_R.repeat(len(batch.positions_B), 1)


@torch.inference_mode()
def rank_users(
    dataset: Dataset,
    users: EvaluationUsers,
    scorer: Scorer,
    k: int,
    *,
    max_history: int,
    exclude_seen: bool = True,
    stage: str = "ranking",
    progress: Progress = silent,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Rows [Q, K] and scores [Q, K] of the k best items of each user, over the whole catalogue, in the order of `users`."""
    rows_QK = np.zeros((len(users), k), dtype=np.int64)
    scores_QK = np.zeros((len(users), k), dtype=np.float32)
    done = 0
    for batch in EvaluationBatches(dataset, users, max_history=max_history, token_budget=EVALUATION_TOKEN_BUDGET):
        rows_BK, scores_BK = rank_scores(scorer(batch), batch, k, exclude_seen=exclude_seen)
        rows_QK[batch.positions_B], scores_QK[batch.positions_B] = rows_BK.numpy(), scores_BK.numpy()
        done += len(batch.positions_B)
        progress(stage, done, len(users))
    return rows_QK, scores_QK


def relevant_items(dataset: Dataset, users: EvaluationUsers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(targets of all users one after the other, offsets [Q1] between users)."""
    positions_G, offsets_Q1 = gather_ragged(Windows(users.history_end_Q, users.target_end_Q))
    return dataset.item_rows_E[positions_G].astype(np.int64), offsets_Q1


def ranking_metrics(dataset: Dataset, users: EvaluationUsers, rows_QK: npt.NDArray[np.int64], ks: tuple[int, ...]) -> dict[str, float]:
    """Every metric at every k of given rankings."""
    relevant_G, offsets_Q1 = relevant_items(dataset, users)
    return metrics.mean_metrics(metrics.hits(rows_QK, relevant_G, offsets_Q1), np.diff(offsets_Q1), ks)


def evaluate(run: OpenRun, part: Part, ks: tuple[int, ...] | None = None, progress: Progress = silent) -> dict[str, dict[str, float]]:
    """Metrics of the model and of popularity on a part; seen items are not ranked. Written into the run's `evaluation.json`.

    Without `ks`, those of `DEFAULT_KS` that the catalogue is large enough for.

    Raises:
        UserError: a k is below 1 or above the number of items.
    """
    num_items = run.dataset.num_items
    if ks is None:
        ks = tuple(k for k in DEFAULT_KS if k <= num_items) or (num_items,)
    if min(ks) < 1 or max(ks) > num_items:
        raise UserError(f"--k {','.join(map(str, ks))}: each must lie between 1 and the {num_items} items of the catalogue")
    users = run.users(part)
    counts_R = item_statistics(run.dataset, run.split, run.manifest.config.ranker.recent_days).counts_R
    scorers = {"model": model_scorer(run.model), "popularity": popularity_scorer(counts_R)}
    results = {}
    for name, scorer in scorers.items():
        rows_QK, _ = rank_users(
            run.dataset, users, scorer, max(ks), max_history=run.manifest.config.model.max_history, stage=name, progress=progress
        )
        results[name] = ranking_metrics(run.dataset, users, rows_QK, ks)
    record_evaluation(run.path, part, results)
    return results


def record_evaluation(run_path: Path, part: Part, results: dict[str, dict[str, float]]) -> None:
    """Merge results into the run's `evaluation.json`, by part and scorer."""
    recorded = read_evaluation(run_path)
    for scorer, values in results.items():
        recorded.setdefault(part, {}).setdefault(scorer, {}).update(values)
    write_text(run_path / EVALUATION, json.dumps(recorded, indent=2) + "\n")


def read_evaluation(run_path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What has been evaluated so far: part -> scorer -> metric -> value."""
    path = run_path / EVALUATION
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
