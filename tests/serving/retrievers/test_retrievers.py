"""Every retriever finds what a scan finds, or nearly so, under filters of any kind."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passerelle.arrays import BoolArray, Float32Array
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.topk import exact_topk
from serving.retrievers.base import Index, best, scan
from serving.retrievers.index_store import KINDS, Kind, make_index, open_index, tuned_recall
from serving.retrievers.retriever import Retriever

Mask = BoolArray


def clustered(num_vectors: int, dim: int, rng: np.random.Generator) -> Float32Array:
    """Vectors around 200 centres with lengths that vary, as popular items have longer ones."""
    centres = np.random.default_rng(77).standard_normal((200, dim))
    vectors_ND = centres[rng.integers(200, size=num_vectors)] + 0.6 * rng.standard_normal((num_vectors, dim))
    return (vectors_ND * rng.lognormal(0, 0.3, (num_vectors, 1))).astype(np.float32)


def oracle(
    query_D: Float32Array, vectors_ND: Float32Array, k: int, allowed_N: Mask | None = None
) -> list[int]:
    """Positions by the obvious implementation, which speaks of rows."""
    vectors_RD = np.concatenate(
        [np.zeros((FIRST_ITEM_ROW, vectors_ND.shape[1]), dtype=np.float32), vectors_ND]
    )
    allowed_1R = (
        None if allowed_N is None else np.concatenate([np.zeros(FIRST_ITEM_ROW, dtype=bool), allowed_N])[None]
    )
    rows_1K, scores_1K = exact_topk(query_D[None], vectors_RD, k, allowed_1R)
    return [
        int(row) - FIRST_ITEM_ROW
        for row, score in zip(rows_1K[0], scores_1K[0], strict=True)
        if np.isfinite(score)
    ]


@pytest.fixture(scope="module")
def vectors_ND() -> Float32Array:
    return clustered(20_000, 32, np.random.default_rng(5))


@pytest.fixture(scope="module", params=KINDS)
def indexed(
    request: pytest.FixtureRequest, vectors_ND: Float32Array, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Path, Index]:
    """Each kind over the first 19,000 of 20,000 vectors, tuned on queries of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    index = make_index(request.param, folder, vectors_ND[:19_000])
    tuned_recall(index, vectors_ND[:19_000], clustered(20, 32, np.random.default_rng(6)), 0.99, scan_limit=0)
    return request.param, folder, index


@pytest.fixture(scope="module")
def retriever(indexed: tuple[Kind, Path, Index], vectors_ND: Float32Array) -> Retriever:
    """A search of more than 100 asks the index."""
    return Retriever(vectors_ND, indexed[2], scan_limit=100)


def recall(
    retriever: Retriever, vectors_ND: Float32Array, queries_QD: Float32Array, masks: list[Mask | None], k: int
) -> float:
    hits = wanted = 0
    for hits_of, query_D, allowed_N in zip(
        retriever.search(queries_QD, k, masks), queries_QD, masks, strict=True
    ):
        expected = oracle(query_D, vectors_ND, k, allowed_N)
        assert len(hits_of) == len(set(hits_of.positions_K.tolist())) == len(expected)
        assert allowed_N is None or allowed_N[hits_of.positions_K].all()
        np.testing.assert_allclose(
            hits_of.scores_K, vectors_ND[hits_of.positions_K] @ query_D, rtol=1e-5, atol=1e-5
        )
        assert (np.diff(hits_of.scores_K) <= 0).all()
        hits += len(set(hits_of.positions_K.tolist()) & set(expected))
        wanted += len(expected)
    return hits / wanted


@pytest.mark.parametrize("share", [1.0, 0.54, 0.1, 0.01, 0.0001])
def test_recall_under_random_filters(retriever: Retriever, vectors_ND: Float32Array, share: float) -> None:
    rng = np.random.default_rng(7)
    masks: list[Mask | None] = [
        None if share == 1.0 else rng.random(len(vectors_ND)) < share for _ in range(20)
    ]
    assert recall(retriever, vectors_ND, clustered(20, 32, rng), masks, 100) >= 0.99


def test_recall_under_filters_that_correlate_with_vectors(
    retriever: Retriever, vectors_ND: Float32Array
) -> None:
    """Whole regions pass, near the query or far from it: a tenth of all along some direction."""
    rng = np.random.default_rng(8)
    masks: list[Mask | None] = []
    for direction_D in rng.standard_normal((20, 32)):
        along_N = vectors_ND @ direction_D
        masks.append(along_N >= np.quantile(along_N, 0.9))
    assert recall(retriever, vectors_ND, clustered(20, 32, rng), masks, 100) >= 0.99


def test_results_far_from_the_query_fill_k(retriever: Retriever, vectors_ND: Float32Array) -> None:
    query_1D = clustered(1, 32, np.random.default_rng(9))
    allowed_N = np.zeros(len(vectors_ND), dtype=bool)
    allowed_N[np.argsort(vectors_ND @ query_1D[0])[:6_000]] = True
    assert recall(retriever, vectors_ND, query_1D, [allowed_N], 3_000) >= 0.9


def test_vectors_added_after_the_index_are_found_exactly(
    retriever: Retriever, vectors_ND: Float32Array
) -> None:
    later_N = np.arange(len(vectors_ND)) >= 19_000
    queries_QD = clustered(10, 32, np.random.default_rng(10))
    for hits, query_D in zip(retriever.search(queries_QD, 50, [later_N] * 10), queries_QD, strict=True):
        assert hits.positions_K.tolist() == oracle(query_D, vectors_ND, 50, later_N)
    for hits, query_D in zip(retriever.search(queries_QD, 50), queries_QD, strict=True):
        expected = oracle(query_D, vectors_ND, 50)
        assert {p for p in expected if p >= 19_000} <= set(hits.positions_K.tolist())


def test_nothing_allowed_and_k_above_the_number_of_vectors(
    retriever: Retriever, vectors_ND: Float32Array
) -> None:
    query_1D = clustered(1, 32, np.random.default_rng(11))
    assert len(retriever.search(query_1D, 10, [np.zeros(len(vectors_ND), dtype=bool)])[0]) == 0
    assert len(retriever.search(query_1D, len(vectors_ND) + 5)[0]) == len(vectors_ND)


def test_batched_search_equals_single_searches(retriever: Retriever, vectors_ND: Float32Array) -> None:
    rng = np.random.default_rng(12)
    queries_QD = clustered(6, 32, rng)
    masks: list[Mask | None] = [
        None,
        rng.random(len(vectors_ND)) < 0.5,
        None,
        rng.random(len(vectors_ND)) < 0.001,
        None,
        None,
    ]
    for hits, query_D, allowed_N in zip(
        retriever.search(queries_QD, 30, masks), queries_QD, masks, strict=True
    ):
        assert (
            hits.positions_K.tolist()
            == retriever.search(query_D[None], 30, [allowed_N])[0].positions_K.tolist()
        )


def test_opened_index_equals_the_built_one(
    indexed: tuple[Kind, Path, Index], retriever: Retriever, vectors_ND: Float32Array
) -> None:
    kind, folder, index = indexed
    again = Retriever(
        vectors_ND,
        open_index(kind, folder, vectors_ND, **({} if index is None else index.parameters)),
        scan_limit=100,
    )
    queries_QD = clustered(5, 32, np.random.default_rng(13))
    for one, other in zip(retriever.search(queries_QD, 20), again.search(queries_QD, 20), strict=True):
        assert one.positions_K.tolist() == other.positions_K.tolist()


def test_unreachable_target_recall_is_refused(
    indexed: tuple[Kind, Path, Index], vectors_ND: Float32Array
) -> None:
    with pytest.raises(UserError, match=r"below the target 1\.01"):
        tuned_recall(indexed[2], vectors_ND[:19_000], vectors_ND[:2], 1.01, scan_limit=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.floats(0, 1))
def test_scan_is_exact(seed: int, k: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    few_ND = rng.standard_normal((80, 16)).astype(np.float32)
    query_D, allowed_N = rng.standard_normal(16).astype(np.float32), rng.random(80) < share
    hits = scan(few_ND, query_D, k, allowed_N)
    assert hits.positions_K.tolist() == oracle(query_D, few_ND, k, allowed_N)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70))
def test_equal_scores_are_ordered_by_position(scores: list[int], k: int) -> None:
    positions = np.random.default_rng(1).permutation(len(scores))
    found = best(positions, np.array(scores, dtype=np.float32), k)
    expected = sorted(zip((-score for score in scores), positions.tolist(), strict=True))[:k]
    assert list(zip((-found.scores_K).tolist(), found.positions_K.tolist(), strict=True)) == expected
