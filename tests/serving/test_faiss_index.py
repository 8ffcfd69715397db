"""The index against the exact answer."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.ids import FIRST_ITEM_ROW
from passerelle.topk import exact_topk
from serving.faiss_index import FaissIndex

Float32Array = npt.NDArray[np.float32]


def clustered(num_vectors: int, dim: int, rng: np.random.Generator) -> Float32Array:
    """Vectors around 200 centres with lengths that vary, as popular items have longer ones."""
    centres = rng.standard_normal((200, dim))
    vectors_ND = centres[rng.integers(200, size=num_vectors)] + 0.6 * rng.standard_normal((num_vectors, dim))
    return (vectors_ND * rng.lognormal(0, 0.3, (num_vectors, 1))).astype(np.float32)


def exact(query_D: Float32Array, vectors_ND: Float32Array, k: int, allowed_N: npt.NDArray[np.bool_] | None = None) -> list[int]:
    """Positions by the oracle, which speaks of rows."""
    vectors_RD = np.concatenate([np.zeros((FIRST_ITEM_ROW, vectors_ND.shape[1]), dtype=np.float32), vectors_ND])
    allowed_1R = None if allowed_N is None else np.concatenate([np.zeros(FIRST_ITEM_ROW, dtype=bool), allowed_N])[None]
    rows_1K, scores_1K = exact_topk(query_D[None], vectors_RD, k, allowed_1R)
    return [int(row) - FIRST_ITEM_ROW for row, score in zip(rows_1K[0], scores_1K[0], strict=True) if np.isfinite(score)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.floats(0, 1))
def test_small_catalogues_are_exact(seed: int, k: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    vectors_ND = rng.standard_normal((80, 16)).astype(np.float32)
    query_D, allowed_N = rng.standard_normal(16).astype(np.float32), rng.random(80) < share
    index = FaissIndex(vectors_ND, query_D[None])
    assert index.exact
    positions_K, scores_K = index.search(query_D, k, allowed_N)
    assert positions_K.tolist() == exact(query_D, vectors_ND, k, allowed_N)
    np.testing.assert_allclose(scores_K, vectors_ND[positions_K] @ query_D, rtol=1e-5, atol=1e-5)


def test_equal_scores_come_by_position() -> None:
    vectors_ND = np.ones((30, 8), dtype=np.float32)
    positions_K, _ = FaissIndex(vectors_ND, vectors_ND[:1]).search(vectors_ND[0], 30)
    assert positions_K.tolist() == list(range(30))


@pytest.fixture(scope="module")
def large() -> tuple[FaissIndex, Float32Array, Float32Array]:
    """An inverted file over 30,000 vectors, the vectors, and 60 queries that it was not tuned on."""
    rng = np.random.default_rng(5)
    vectors_ND = clustered(30_000, 32, rng)
    queries_QD = clustered(160, 32, rng)
    index = FaissIndex(vectors_ND, queries_QD[60:], exact_limit=1_000)
    assert not index.exact
    return index, vectors_ND, queries_QD[:60]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.005])
def test_recall_of_the_inverted_file_at_any_selectivity(large: tuple[FaissIndex, Float32Array, Float32Array], share: float) -> None:
    index, vectors_ND, queries_QD = large
    rng = np.random.default_rng(6)
    hits = wanted = 0
    for query_D in queries_QD:
        allowed_N = None if share == 1.0 else rng.random(len(vectors_ND)) < share
        positions_K, _ = index.search(query_D, 100, allowed_N)
        expected = exact(query_D, vectors_ND, 100, allowed_N)
        assert len(positions_K) == len(expected) and (allowed_N is None or allowed_N[positions_K].all())
        hits += len(set(positions_K.tolist()) & set(expected))
        wanted += len(expected)
    assert hits / wanted >= 0.99


def test_a_filter_far_from_the_query_still_fills_k(large: tuple[FaissIndex, Float32Array, Float32Array]) -> None:
    index, vectors_ND, queries_QD = large
    allowed_N = np.zeros(len(vectors_ND), dtype=bool)
    allowed_N[np.argsort(vectors_ND @ queries_QD[0])[:10_000]] = True  # the third of the catalogue that fits the query worst
    positions_K, _ = index.search(queries_QD[0], 3_000, allowed_N)
    assert len(positions_K) == len(set(positions_K.tolist())) == 3_000 and allowed_N[positions_K].all()
