"""Ranking features against values worked out by hand, and against a slow definition with loops."""

from datetime import UTC, datetime
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.bundle import Bundle
from passerelle.dataset import FeatureColumn
from passerelle.features import RankingFeatures

MONDAY_14_30_MS = int(datetime(2024, 1, 1, 14, 30, tzinfo=UTC).timestamp() * 1000)

GENRES = FeatureColumn(name="genres", kind="multi_categorical")
YEAR = FeatureColumn(name="year", kind="numeric")


@pytest.fixture
def by_hand() -> RankingFeatures:
    """Three items in two dimensions, rows 2, 3 and 4."""
    items = pa.table(
        {
            "item_id": ["a", "b", "c"],
            "genres": [["Drama", "War"], ["Drama"], []],
            "year": pa.array([1990, None, 2000]),
        }
    )
    vectors_RD = np.array([[0, 0], [0, 0], [1, 0], [0, 2], [3, 4]], dtype=np.float32)
    counts_R, recent_R = np.array([0, 0, 9.0, 0, 99]), np.array([0, 0, 1.0, 0, 9])
    return RankingFeatures(vectors_RD, counts_R, recent_R, items, [GENRES, YEAR])


def test_by_hand(by_hand: RankingFeatures) -> None:
    features_CF = by_hand.compute(
        np.array([4, 3]), np.array([5, 2], dtype=np.float32), np.array([3, 2]), MONDAY_14_30_MS
    )
    expected = {
        "retrieval_score": [5, 2],
        "retrieval_rank": [0, 1],
        "score_gap_to_best": [0, 3],
        "log_count": [np.log(100), 0],
        "log_recent_count": [np.log(10), 0],
        "history_length": [2, 2],
        "similarity_last": [3, 0],  # with (1, 0), the last of the history
        "similarity_max_last_5": [8, 4],  # with (0, 2)
        "similarity_mean_last_50": [5.5, 2],
        "hour_of_day": [14, 14],
        "weekday": [0, 0],
        "affinity_50_genres": [0, 1],  # no genre; Drama, which both items of the history have
        "affinity_5_genres": [0, 1],
        "value_year": [2000, 1995],  # unknown: the median of 1990 and 2000
        "distance_year": [7.5, 2.5],  # from the mean of 1995 and 1990
    }
    assert by_hand.names == tuple(expected)
    np.testing.assert_allclose(features_CF, np.array(list(expected.values()), dtype=np.float32).T, rtol=1e-6)


def test_no_history(by_hand: RankingFeatures) -> None:
    features_CF = by_hand.compute(
        np.array([2]), np.array([1], dtype=np.float32), np.array([], dtype=np.int64), MONDAY_14_30_MS
    )
    values = dict(zip(by_hand.names, features_CF[0].tolist(), strict=True))
    about_history = {
        name: value
        for name, value in values.items()
        if name.startswith(("similarity", "affinity", "distance", "history"))
    }
    assert set(about_history.values()) == {0.0} and values["value_year"] == 1990


def test_no_candidates(by_hand: RankingFeatures) -> None:
    none = np.array([], dtype=np.int64)
    assert by_hand.compute(none, none.astype(np.float32), np.array([2]), 0).shape == (0, 15)


@pytest.mark.parametrize(
    ("time", "hour", "weekday"),
    [("1970-01-01T00:00", 0, 3), ("2024-02-29T23:59", 23, 3), ("2024-03-03T00:00", 0, 6)],
)
def test_time_is_that_of_the_request_in_utc(
    by_hand: RankingFeatures, time: str, hour: int, weekday: int
) -> None:
    timestamp_ms = int(datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp() * 1000)
    features_CF = by_hand.compute(np.array([2]), np.zeros(1, dtype=np.float32), np.array([3]), timestamp_ms)
    at = {name: position for position, name in enumerate(by_hand.names)}
    assert (features_CF[0, at["hour_of_day"]], features_CF[0, at["weekday"]]) == (hour, weekday)


def _affinity(of: set[str], history: list[set[str]]) -> float:
    shares = [sum(value in other for other in history) / len(history) for value in of] if history else []
    return fmean(shares) if shares else 0.0


def _slowly(
    bundle: Bundle, candidates: list[int], scores: list[float], history: list[int], timestamp_ms: int
) -> list[list[float]]:
    """The definition, one number at a time."""
    items: list[dict[str, Any]] = bundle.items.to_pylist()
    years = [item["year"] for item in items if item["year"] is not None]

    def year(row: int) -> float:
        value = items[row - 2]["year"]
        return median(years) if value is None else value

    def values(row: int, name: str) -> set[str]:
        value = items[row - 2][name]
        return set(value) if isinstance(value, list) else set() if value is None else {value}

    time = datetime.fromtimestamp(timestamp_ms // 1000, UTC)
    rows = []
    for rank, (row, score) in enumerate(zip(candidates, scores, strict=True)):
        vector = bundle.vectors_RD[row].astype(np.float64)
        similarities = [float(vector @ bundle.vectors_RD[other]) for other in history[-50:]] or [0.0]
        features = [
            score,
            rank,
            max(scores) - score,
            np.log1p(bundle.counts_R[row]),
            np.log1p(bundle.recent_counts_R[row]),
            len(history),
        ]
        features += [
            similarities[-1],
            max(similarities[-5:]),
            fmean(similarities),
            time.hour,
            time.weekday(),
        ]
        for name in ("genres", "kind"):
            features += [
                _affinity(values(row, name), [values(other, name) for other in history[-window:]])
                for window in (50, 5)
            ]
        usual = fmean(year(other) for other in history[-50:]) if history else year(row)
        rows.append([*features, year(row), abs(year(row) - usual)])
    return rows


@given(
    st.lists(st.integers(2, 301), min_size=1, max_size=8, unique=True),
    st.lists(st.integers(2, 301), max_size=60),
    st.integers(0, 2**41),
)
def test_features_equal_a_reference_implementation(
    bundle: Bundle, candidates: list[int], history: list[int], timestamp_ms: int
) -> None:
    features = bundle.ranking_features()
    assert features.names == bundle.manifest.features
    scores_C = np.linspace(2, 1, len(candidates), dtype=np.float32)
    features_CF = features.compute(
        np.array(candidates), scores_C, np.array(history, dtype=np.int64), timestamp_ms
    )
    assert features_CF.dtype == np.float32 and np.isfinite(features_CF).all()
    np.testing.assert_allclose(
        features_CF,
        _slowly(bundle, candidates, scores_C.tolist(), history, timestamp_ms),
        rtol=1e-4,
        atol=1e-5,
    )
