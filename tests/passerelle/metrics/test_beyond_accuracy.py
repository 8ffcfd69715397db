"""Coverage, novelty, popularity lift and diversity against definitions written out
one user and one pair at a time.

Shape legend: Q users, K ranks, R item rows (special rows included), D vector width.
"""

import math
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.dataset import FeatureColumn
from passerelle.metrics import beyond_accuracy
from passerelle.metrics.beyond_accuracy import (
    category_vectors,
    coverage,
    history_popularity,
    intra_list_diversity,
    novelty,
    popularity_lift,
    unit_vectors,
)

NUM_ROWS = 9
rankings = st.lists(
    st.tuples(st.permutations(range(2, NUM_ROWS)), st.integers(1, 5)).map(
        lambda pair: (pair[0][: pair[1]] + [0] * 5)[:5]
    ),
    min_size=1,
)
histories = st.lists(st.lists(st.integers(2, NUM_ROWS - 1), min_size=1, max_size=4), min_size=1)


def slow_distance(one: list[float], other: list[float]) -> float:
    product = math.hypot(*one) * math.hypot(*other)
    return 1.0 - (sum(a * b for a, b in zip(one, other, strict=True)) / product if product else 0.0)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@given(rankings, histories, st.integers(0, 99), st.sampled_from([1, 2, 5]))
def test_all_equal_their_definitions(
    ranked: list[list[int]], chosen: list[list[int]], seed: int, k: int
) -> None:
    generator = np.random.default_rng(seed)
    counts_R = generator.integers(0, 4, NUM_ROWS)
    vectors_RD = generator.integers(-1, 2, (NUM_ROWS, 3)).astype(np.float32)  # zero vectors among them
    ranked_QK, first = np.array(ranked), [[row for row in rows[:k] if row] for rows in ranked]
    assert coverage(ranked_QK, NUM_ROWS - 2, k) == pytest.approx(
        len({row for rows in first for row in rows}) / (NUM_ROWS - 2)
    )

    total = max(1, sum(counts_R.tolist()))
    bits = [mean([-math.log2(max(1, counts_R[row]) / total) for row in rows]) for rows in first]
    np.testing.assert_allclose(novelty(ranked_QK, counts_R, k), bits, atol=1e-12)

    distances = [
        mean([slow_distance(*(vectors_RD[row].tolist() for row in pair)) for pair in combinations(rows, 2)])
        for rows in first
    ]
    np.testing.assert_allclose(
        intra_list_diversity(ranked_QK, unit_vectors(vectors_RD), k), distances, atol=1e-6
    )

    ranked_popularity = mean([mean([float(counts_R[row]) for row in rows]) for rows in first])
    chosen_popularity = mean([mean([float(counts_R[row]) for row in rows]) for rows in chosen])
    popularity = history_popularity(counts_R, np.concatenate(chosen), np.cumsum([0, *map(len, chosen)]))
    assert popularity.mean() == pytest.approx(chosen_popularity)
    lift = popularity_lift(ranked_QK, counts_R, popularity, k)
    assert lift == pytest.approx(ranked_popularity / chosen_popularity - 1 if chosen_popularity else 0.0)


def test_by_hand() -> None:
    counts_R = np.array([0, 0, 8, 4, 4, 0])
    ranked_QK = np.array([[2, 3, 5], [2, 0, 0]])
    assert coverage(ranked_QK, 4, 3) == 3 / 4
    assert coverage(ranked_QK, 4, 1) == 1 / 4
    assert novelty(ranked_QK, counts_R, 3).tolist() == pytest.approx(
        [(1 + 2 + 4) / 3, 1]
    )  # an item without events: 1 of 16
    # histories: 2 and 3 (mean 6), 4 (mean 4); ranked: 2 and 3 (mean 6), 2 (mean 8)
    popularity = history_popularity(counts_R, np.array([2, 3, 4]), np.array([0, 2, 3]))
    assert popularity_lift(ranked_QK, counts_R, popularity, 2) == pytest.approx(7 / 5 - 1)
    vectors_RD = np.array([[9, 9], [9, 9], [1, 0], [1, 0], [0, 0], [-2, 0]], dtype=np.float32)
    # 2 and 3 alike, 5 opposite to both; a single item has no pair
    assert intra_list_diversity(ranked_QK, unit_vectors(vectors_RD), 3).tolist() == pytest.approx(
        [(0 + 2 + 2) / 3, 0]
    )


def test_diversity_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    ranked_QK, unit_RD = generator.integers(2, 30, (17, 4)), unit_vectors(generator.normal(size=(30, 3)))
    whole = intra_list_diversity(ranked_QK, unit_RD, 4)
    monkeypatch.setattr(beyond_accuracy, "_CHUNK_VALUES", 5 * 4 * 3)
    assert intra_list_diversity(ranked_QK, unit_RD, 4).tolist() == whole.tolist()


def test_category_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    items = pa.table(
        {"genres": pa.array([["b", "a"], None, ["b"]]), "year": [1, 2, 3], "studio": ["x", None, "y"]}
    )
    features = [
        FeatureColumn.model_validate(pair)
        for pair in ({"name": "genres", "kind": "multi_categorical"}, {"name": "year", "kind": "numeric"})
    ]
    studio = FeatureColumn(name="studio", kind="categorical")
    vectors_RD = category_vectors(items, [*features, studio])
    assert vectors_RD is not None
    assert vectors_RD.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert category_vectors(items, features[1:]) is None
    assert category_vectors(items, []) is None
    monkeypatch.setattr(beyond_accuracy, "MAX_CATEGORIES", 3)
    assert category_vectors(items, [*features, studio]) is None
    assert category_vectors(items, features) is not None
