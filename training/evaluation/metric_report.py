"""Metrics of rankings: accuracy by user, metrics beyond accuracy, and confidence intervals of the means.

Shape legend: B users of a batch, Q users in all, Q1 = Q + 1, R item rows (special rows included), K ranked
items, G relevant items, S events of all histories, D width of an item vector, C relevant items of a chunk, M
metrics.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passerelle.arrays import Float32Array, Float64Array, FloatArray, Int64Array
from passerelle.dataset import Dataset
from passerelle.metrics import accuracy, beyond_accuracy, bootstrap
from passerelle.metrics.segments import Segment
from passerelle.ragged import gather_ragged
from passerelle.splits import EvaluationUsers, Split
from training.data.evaluation_batches import EvaluationBatch
from training.data.statistics import num_events

Members = Int64Array | slice
ALL_USERS = slice(None)

_MAX_SCORES = 2**24
"""Maximum of scores compared with those of relevant items at once: 128 MB of float64."""


@dataclass(frozen=True)
class MetricReport:
    """The metrics of one scorer on one part."""

    accuracy: dict[str, Float64Array]
    """Metric -> float64 [Q], such as `ndcg@10`; `auc` is of the whole ranking and has no k."""
    beyond: dict[str, float]
    """`coverage`, `novelty`, `popularity_lift` and, from k = 2, `diversity` at each k
    (`passerelle/metrics/beyond_accuracy.py`)."""
    segments: dict[str, dict[str, float]]
    """Segment -> `users`, then every metric over them alone."""

    def plain(self) -> dict[str, float]:
        """Metric -> number, accuracy first."""
        return {**_means(self.accuracy), **self.beyond}

    def values_QM(self) -> Float64Array:
        """Accuracy with a column for each metric."""
        return np.stack(list(self.accuracy.values()), axis=1)


@dataclass(frozen=True)
class Catalogue:
    """Statistics of the catalogue that metrics beyond accuracy need, the same for every scorer."""

    num_items: int
    counts_R: Int64Array
    """Training events of each item, not weighted."""
    history_popularity_Q: Float64Array
    """Popularity of the history of each evaluated user (`beyond_accuracy.history_popularity`)."""
    unit_RD: FloatArray
    """Unit vectors of the items, between which diversity is measured."""
    diversity_of: str
    """Origin of these vectors: `categories` or `model`."""


def describe_catalogue(
    dataset: Dataset, split: Split, users: EvaluationUsers, vectors_RD: Float32Array
) -> Catalogue:
    """Returns counts over training events, the popularity of histories, and the vectors for diversity.

    The vectors are one-hots of the categorical item features, which say the same of every model; a dataset
    without such a feature, or with more than `beyond_accuracy.MAX_CATEGORIES` values, gets the given item
    vectors of the evaluated model.
    """
    counts_R = num_events(dataset, split)
    history_S, history_offsets_Q1 = gather_ragged(users.history_start_Q, users.history_end_Q)
    categories_RD = beyond_accuracy.category_vectors(dataset.items, dataset.manifest.item_features)
    return Catalogue(
        num_items=dataset.num_items,
        counts_R=counts_R,
        history_popularity_Q=beyond_accuracy.history_popularity(
            counts_R, dataset.item_rows_E[history_S], history_offsets_Q1
        ),
        unit_RD=beyond_accuracy.unit_vectors(vectors_RD if categories_RD is None else categories_RD),
        diversity_of="model" if categories_RD is None else "categories",
    )


def batch_auc(scores_BR: Tensor, batch: EvaluationBatch) -> Float64Array:
    """Returns the AUC [B] of each user's relevant items among all items whose score is not -inf.

    `scores_BR` is overwritten.
    A relevant item that is itself -inf, because it was seen, counts as below all others.
    """
    rows_G = torch.from_numpy(batch.relevant_rows_G)
    user_G = torch.from_numpy(np.repeat(np.arange(len(batch.positions_B)), batch.num_relevant_B))
    own_G1 = scores_BR[user_G, rows_G][:, None]
    scores_BR[user_G, rows_G] = float("-inf")
    num_others_B = (~scores_BR.isneginf()).sum(dim=1)
    above_G, ties_G = torch.empty_like(user_G), torch.empty_like(user_G)
    chunk = max(1, _MAX_SCORES // scores_BR.shape[1])
    for start in range(0, len(user_G), chunk):
        part = slice(start, start + chunk)
        others_CR = scores_BR[user_G[part]]
        above_G[part] = (others_CR > own_G1[part]).sum(dim=1)
        ties_G[part] = (others_CR == own_G1[part]).sum(dim=1)
    ties_G[own_G1[:, 0].isneginf()] = 0
    return accuracy.auc(
        above_G.numpy(), ties_G.numpy(), num_others_B[user_G].numpy(), batch.relevant_offsets_B1
    )


def metric_report(
    rows_QK: Int64Array,
    auc_Q: Float64Array,
    relevant_G: Int64Array,
    offsets_Q1: Int64Array,
    ks: tuple[int, ...],
    catalogue: Catalogue,
    segments: Sequence[Segment] = (),
) -> MetricReport:
    """Returns every metric at every k of rankings [Q, K] that are as long as the largest k."""
    per_user = {
        **accuracy.user_metrics(accuracy.hits(rows_QK, relevant_G, offsets_Q1), np.diff(offsets_Q1), ks),
        "auc": auc_Q,
    }
    return MetricReport(
        accuracy=per_user,
        beyond=_beyond(rows_QK, ks, catalogue),
        segments={
            segment.name: {
                "users": len(segment.members),
                **_means(per_user, segment.members),
                **_beyond(rows_QK, ks, catalogue, segment.members),
            }
            for segment in segments
        },
    )


def _means(accuracy: dict[str, Float64Array], members: Members = ALL_USERS) -> dict[str, float]:
    return {name: float(values_Q[members].mean()) for name, values_Q in accuracy.items()}


def _beyond(
    rows_QK: Int64Array, ks: tuple[int, ...], catalogue: Catalogue, members: Members = ALL_USERS
) -> dict[str, float]:
    rows_QK, history_popularity_Q = rows_QK[members], catalogue.history_popularity_Q[members]
    beyond: dict[str, float] = {}
    for k in ks:
        beyond[f"coverage@{k}"] = beyond_accuracy.coverage(rows_QK, catalogue.num_items, k)
        beyond[f"novelty@{k}"] = float(beyond_accuracy.novelty(rows_QK, catalogue.counts_R, k).mean())
        beyond[f"popularity_lift@{k}"] = beyond_accuracy.popularity_lift(
            rows_QK, catalogue.counts_R, history_popularity_Q, k
        )
        if k > 1:
            beyond[f"diversity@{k}"] = float(
                beyond_accuracy.intra_list_diversity(rows_QK, catalogue.unit_RD, k).mean()
            )
    return beyond


def confidence(
    report: MetricReport, model: MetricReport | None, generator: np.random.Generator
) -> dict[str, Any]:
    """Intervals of every accuracy metric, and for a baseline those of how far the model is above it, user by
    user; from one set of draws.

    Returns:
        `intervals`: metric -> `low` and `high`; with `model`, `model_minus_this`: metric -> `mean`, `low` and
        `high`; `confidence` and `num_resamples`, what they were made with.
    """
    names, values_QM = list(report.accuracy), report.values_QM()
    compared_QM = values_QM if model is None else np.hstack([values_QM, model.values_QM() - values_QM])
    intervals = bootstrap.intervals(compared_QM, generator)
    ends = [{"low": interval.low, "high": interval.high} for interval in intervals[: len(names)]]
    result: dict[str, Any] = {"intervals": dict(zip(names, ends, strict=True))}
    if model is not None:
        result["model_minus_this"] = dict(zip(names, map(asdict, intervals[len(names) :]), strict=True))
    return {**result, "confidence": bootstrap.CONFIDENCE, "num_resamples": bootstrap.NUM_RESAMPLES}
