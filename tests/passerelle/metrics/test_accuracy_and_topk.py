"""Metrics and the exact top-k against definitions written out one user at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.ids import FIRST_ITEM_ROW
from passerelle.metrics.accuracy import (
    METRICS,
    auc,
    average_precision,
    hit_rate,
    hits,
    mean_metrics,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
    user_metrics,
)
from passerelle.topk import exact_topk

K = 4
users = st.lists(
    st.tuples(
        st.permutations(range(2, 9)).map(lambda rows: rows[:K]),
        st.lists(st.integers(2, 12), min_size=1, max_size=6, unique=True),
    ),
    min_size=1,
    max_size=6,
)


def slow_metrics(ranked: list[int], relevant: list[int], k: int) -> dict[str, float]:
    found = [row in relevant for row in ranked[:k]]
    gains = [1 / math.log2(rank + 2) for rank, hit in enumerate(found) if hit]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return {
        "recall": sum(found) / len(relevant),
        "precision": sum(found) / k,
        "map": sum(sum(found[: rank + 1]) / (rank + 1) for rank, hit in enumerate(found) if hit)
        / min(len(relevant), k),
        "hit_rate": float(any(found)),
        "ndcg": sum(gains) / ideal,
        "mrr": next((1 / (rank + 1) for rank, hit in enumerate(found) if hit), 0.0),
    }


@given(users)
def test_metrics_equal_their_definitions(cases: list[tuple[list[int], list[int]]]) -> None:
    ranked_QK = np.array([ranked for ranked, _ in cases])
    relevant_G = np.concatenate([relevant for _, relevant in cases])
    num_relevant_Q = np.array([len(relevant) for _, relevant in cases])
    hits_QK = hits(ranked_QK, relevant_G, np.concatenate([[0], np.cumsum(num_relevant_Q)]))
    assert hits_QK.tolist() == [[row in relevant for row in ranked] for ranked, relevant in cases]
    for k in (1, 2, K):
        expected = [slow_metrics(ranked, relevant, k) for ranked, relevant in cases]
        for name, metric in METRICS.items():
            np.testing.assert_allclose(
                metric(hits_QK, num_relevant_Q, k), [each[name] for each in expected], rtol=1e-12
            )
    mean = mean_metrics(hits_QK, num_relevant_Q, (1, K))
    assert set(mean) == {f"{name}@{k}" for name in METRICS for k in (1, K)}
    assert {
        name: values_Q.mean() for name, values_Q in user_metrics(hits_QK, num_relevant_Q, (1, K)).items()
    } == mean
    assert mean["ndcg@4"] == pytest.approx(
        np.mean([slow_metrics(ranked, relevant, K)["ndcg"] for ranked, relevant in cases])
    )


def test_metrics_by_hand() -> None:
    hits_QK = np.array([[False, True, True, False], [False, False, False, True], [False] * 4])
    num_relevant_Q = np.array([2, 5, 1])
    assert recall(hits_QK, num_relevant_Q, 4).tolist() == [1.0, 0.2, 0.0]
    assert recall(hits_QK, num_relevant_Q, 2).tolist() == [0.5, 0.0, 0.0]
    assert precision(hits_QK, num_relevant_Q, 4).tolist() == [0.5, 0.25, 0.0]
    assert precision(hits_QK, num_relevant_Q, 8).tolist() == [0.25, 0.125, 0.0], (
        "over k, though only four are ranked"
    )
    assert average_precision(hits_QK, num_relevant_Q, 4).tolist() == pytest.approx(
        [(1 / 2 + 2 / 3) / 2, (1 / 4) / 4, 0.0]
    )
    assert average_precision(hits_QK, num_relevant_Q, 2).tolist() == pytest.approx([(1 / 2) / 2, 0.0, 0.0])
    assert hit_rate(hits_QK, num_relevant_Q, 3).tolist() == [1.0, 0.0, 0.0]
    assert reciprocal_rank(hits_QK, num_relevant_Q, 4).tolist() == [0.5, 0.25, 0.0]
    first = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    second = (1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5))
    np.testing.assert_allclose(ndcg(hits_QK, num_relevant_Q, 4), [first, second, 0.0])


def test_a_perfect_ranking_scores_one_even_when_it_is_short() -> None:
    hits_QK = np.array([[True, True]])
    for metric in (hit_rate, ndcg, reciprocal_rank, average_precision):
        assert metric(hits_QK, np.array([2]), 10).tolist() == [1.0]
    for metric in (ndcg, average_precision, precision):
        assert metric(hits_QK, np.array([9]), 2).tolist() == [1.0]  # no ranking of two can do better


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4),
        max_size=5,
    )
)
def test_auc_equals_the_share_of_pairs_in_order(users: list[list[tuple[int, int, int]]]) -> None:
    """Each relevant item is told by how many others are above, level with and below it;
    the oracle walks over all pairs.
    """
    expected = []
    for items in users:
        values = [[0.0] * above + [0.5] * ties + [1.0] * below or [0.5] for above, ties, below in items]
        expected.append(np.mean([np.mean(pairs) for pairs in values]))
    counts_G3 = np.array([item for items in users for item in items]).reshape(-1, 3)
    offsets_Q1 = np.cumsum([0, *map(len, users)])
    np.testing.assert_allclose(
        auc(counts_G3[:, 0], counts_G3[:, 1], counts_G3.sum(axis=1), offsets_Q1), expected
    )


def test_hits_without_users() -> None:
    assert hits(np.empty((0, 3), dtype=int), np.empty(0, dtype=int), np.array([0])).shape == (0, 3)
    assert not hits(np.array([[2, 3]]), np.empty(0, dtype=int), np.array([0, 0])).any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
@settings(max_examples=60)
def test_exact_topk_equals_a_sort(seed: int, k: int, filtered: bool) -> None:
    generator = np.random.default_rng(seed)
    vectors_RD = generator.integers(-2, 3, (10, 3)).astype(
        np.float32
    )  # small integers: many ties, sums exact
    query_QD = generator.integers(-2, 3, (4, 3)).astype(np.float32)
    allowed_QR = generator.random((4, 10)) < 0.4 if filtered else None
    rows_QK, scores_QK = exact_topk(query_QD, vectors_RD, k, allowed_QR)
    for query, rows, scores, allowed in zip(
        query_QD, rows_QK, scores_QK, allowed_QR if filtered else np.ones((4, 10), bool), strict=True
    ):
        candidates = [
            (-float(query @ vectors_RD[row]), row) for row in range(FIRST_ITEM_ROW, 10) if allowed[row]
        ]
        expected = sorted(candidates)[:k]
        missing = min(k, 10) - len(expected)
        assert rows.tolist() == [row for _, row in expected] + [0] * missing
        assert scores.tolist() == [-score for score, _ in expected] + [-math.inf] * missing


def test_exact_topk_leaves_its_inputs_alone() -> None:
    vectors_RD, query_QD = np.ones((4, 2), np.float32), np.ones((1, 2), np.float32)
    exact_topk(query_QD, vectors_RD, 2, np.zeros((1, 4), bool))
    assert (vectors_RD == 1).all() and (query_QD == 1).all()
    assert exact_topk(query_QD.astype(np.float16), vectors_RD.astype(np.float16), 2)[1].dtype == np.float32
