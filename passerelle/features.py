"""Ranking features, defined once: training, serving and logs all call `RankingFeatures.compute`.

Shape legend: C candidates of one request, L history length, R item rows (special rows included), D vector
width, F features, V distinct values of a categorical column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from passerelle.arrays import Float32Array, Float64Array, FloatArray, Int64Array
from passerelle.calendar_time import hour_of_day, weekday
from passerelle.categories import category_codes
from passerelle.dataset import FeatureColumn
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.ragged import gather_ragged

LONG_WINDOW, SHORT_WINDOW = 50, 5

_FIXED = (
    "retrieval_score",
    "retrieval_rank",
    "score_gap_to_best",
    "log_count",
    "log_recent_count",
    "history_length",
    "similarity_last",
    "similarity_max_last_5",
    "similarity_mean_last_50",
    "hour_of_day",
    "weekday",
)
RETRIEVAL_SCORE = _FIXED.index("retrieval_score")
"""Index of the retrieval's score among the features."""


@dataclass(frozen=True)
class _Categories:
    """One categorical item column: the value codes of each row, one after the other."""

    offsets_R1: Int64Array
    codes: Int64Array
    num_values: int

    def of(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns the codes of the rows, row by row, and the position in `rows` of each code."""
        positions, offsets = gather_ragged(self.offsets_R1[rows], self.offsets_R1[rows + 1])
        return self.codes[positions], np.repeat(np.arange(len(rows)), np.diff(offsets))

    def affinity(self, candidates_C: Int64Array, history_L: Int64Array) -> Float64Array:
        """Returns the mean, over a candidate's values, of the share of the history that has the value."""
        profile_V = np.bincount(self.of(history_L)[0], minlength=self.num_values) / max(1, len(history_L))
        codes, owners = self.of(candidates_C)
        sums_C = np.bincount(owners, weights=profile_V[codes], minlength=len(candidates_C))
        return sums_C / np.maximum(1, np.bincount(owners, minlength=len(candidates_C)))


def _categories(items: pa.Table, feature: FeatureColumn) -> _Categories:
    row_T, code_T, num_values = category_codes(items.column(feature.name))
    counts_R = np.bincount(row_T + FIRST_ITEM_ROW, minlength=items.num_rows + FIRST_ITEM_ROW)
    return _Categories(np.concatenate([[0], np.cumsum(counts_R)]), code_T, max(1, num_values))


def _numeric(items: pa.Table, feature: FeatureColumn) -> Float64Array:
    """Returns the column by item row, with unknown values and special rows replaced by the median."""
    values = items.column(feature.name).cast(pa.float64()).to_numpy()
    known = values[np.isfinite(values)]
    median = float(np.median(known)) if len(known) else 0.0
    return np.concatenate([np.full(FIRST_ITEM_ROW, median), np.where(np.isfinite(values), values, median)])


class RankingFeatures:
    """The features of a candidate, given a user's history, the retrieval's opinion and the time of the
    request.

    For every categorical item feature: `affinity_50_NAME` and `affinity_5_NAME`, the share of the last 50 (or
    5) history items that have the candidate's values.
    For every numeric one: `value_NAME` and `distance_NAME`, from the mean of the last 50 history items.
    Text is not used.
    `hour_of_day` and `weekday` (Monday is 0) are those of the request, in UTC.

    Args:
        vectors_RD: item vectors, row = item_row.
        counts_R: weighted events of each item before the time the features stand for.
        recent_counts_R: the same over the last days of it.
        items: item table in row order, with the feature columns.
        item_features: which columns to use, and as what.
    """

    def __init__(
        self,
        vectors_RD: Float32Array,
        counts_R: Float64Array,
        recent_counts_R: Float64Array,
        items: pa.Table,
        item_features: Sequence[FeatureColumn],
    ) -> None:
        self._vectors_RD = vectors_RD
        self._log_counts_R = np.log1p(counts_R)
        self._log_recent_counts_R = np.log1p(recent_counts_R)
        self._categories = {
            f.name: _categories(items, f)
            for f in item_features
            if f.kind in ("categorical", "multi_categorical")
        }
        self._numeric = {f.name: _numeric(items, f) for f in item_features if f.kind == "numeric"}
        self.names: tuple[str, ...] = (
            *_FIXED,
            *(
                f"affinity_{window}_{name}"
                for name in self._categories
                for window in (LONG_WINDOW, SHORT_WINDOW)
            ),
            *(f"{what}_{name}" for name in self._numeric for what in ("value", "distance")),
        )

    def compute(
        self, candidates_C: Int64Array, scores_C: Float32Array, history_L: Int64Array, timestamp_ms: int
    ) -> Float32Array:
        """Returns the features of candidates in retrieval order (best first), in the order of `names`.

        Args:
            candidates_C: item rows.
            scores_C: inner product of query and item vector.
            history_L: item rows the user has seen, oldest first; may be empty.
            timestamp_ms: time of the request, milliseconds since the epoch.

        Returns:
            float32 [C, F], all finite.
        """
        num_candidates = len(candidates_C)
        similarity_CL = self._vectors_RD[candidates_C] @ self._vectors_RD[history_L[-LONG_WINDOW:]].T
        some_history = similarity_CL.shape[1] > 0
        zeros_C = np.zeros(num_candidates)
        columns: list[FloatArray | float] = [
            scores_C,
            np.arange(num_candidates, dtype=np.float64),
            scores_C.max(initial=-np.inf) - scores_C,
            self._log_counts_R[candidates_C],
            self._log_recent_counts_R[candidates_C],
            float(len(history_L)),
            similarity_CL[:, -1] if some_history else zeros_C,
            similarity_CL[:, -SHORT_WINDOW:].max(axis=1) if some_history else zeros_C,
            similarity_CL.mean(axis=1) if some_history else zeros_C,
            float(hour_of_day(timestamp_ms)),
            float(weekday(timestamp_ms)),
        ]
        for categories in self._categories.values():
            columns += [
                categories.affinity(candidates_C, history_L[-window:])
                for window in (LONG_WINDOW, SHORT_WINDOW)
            ]
        for values_R in self._numeric.values():
            value_C = values_R[candidates_C]
            usual = values_R[history_L[-LONG_WINDOW:]].mean() if some_history else value_C
            columns += [value_C, np.abs(value_C - usual)]
        features_CF = np.empty((num_candidates, len(columns)), dtype=np.float32)
        for position, values in enumerate(columns):
            features_CF[:, position] = values
        return features_CF
