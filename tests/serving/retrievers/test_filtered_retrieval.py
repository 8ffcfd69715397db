"""Random filter trees through every retriever: exactly the matching rows are found, best first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.bundle import Bundle
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue, item_columns
from serving.retrievers.index_store import KINDS, make_index
from serving.retrievers.retriever import Retriever
from serving.schemas.filters import Filter
from tests.support.filters import TREES, meets


@pytest.fixture(scope="module", params=KINDS)
def retriever(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Retriever:
    """A retriever with an index over the first 280 of 300 items; 20 allowed vectors or fewer are scanned."""
    vectors_ND = np.asarray(bundle.vectors_RD)[FIRST_ITEM_ROW:]
    folder: Path = tmp_path_factory.mktemp(request.param)
    return Retriever(vectors_ND, make_index(request.param, folder, vectors_ND[:280]), scan_limit=20)


@pytest.fixture(scope="module")
def items(bundle: Bundle) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = bundle.items.to_pylist()
    return found


@settings(max_examples=400)
@given(st.lists(TREES, max_size=2), st.integers(0, 2**32 - 1))
def test_filtered_retrieval_matches_the_definition(
    bundle: Bundle, items: list[dict[str, Any]], retriever: Retriever, filters: list[Filter], seed: int
) -> None:
    query_D = np.random.default_rng(seed).standard_normal(bundle.manifest.dim).astype(np.float32)
    allowed_R = Catalogue(item_columns(bundle)).eligible(filters).rows_R
    hits = retriever.search(query_D[None], 300, [allowed_R[FIRST_ITEM_ROW:]])[0]
    passing = [position for position, item in enumerate(items) if all(meets(item, tree) for tree in filters)]
    exact = bundle.vectors_RD[FIRST_ITEM_ROW:].astype(np.float64) @ query_D
    assert sorted(hits.positions_K.tolist()) == passing
    in_order = np.sort(exact[passing])[::-1]
    # in float32, two nearly equal scores may be in the other order
    np.testing.assert_allclose(exact[hits.positions_K], in_order, atol=1e-5)
