"""Second stage: from a query vector to the candidates of the ranker, with seen items and filters applied inside the search.

Shape legend: R item rows (special rows included), N = R - FIRST_ITEM_ROW items, D vector width, C candidates.
"""

from collections.abc import Sequence

import numpy as np

from passerelle.bundle import Bundle
from passerelle.ids import FIRST_ITEM_ROW
from serving.faiss_index import EXACT_LIMIT, FaissIndex
from serving.filters import Filter, ItemFilters, Mask
from serving.schemas import RecommendRequest
from serving.stages import PERSONAL, POPULARITY, SIMILAR, Candidates, Float32Array, Int64Array, Query

_SIMILAR_POOL = 1_000
"""Neighbours by inner product that are ordered by cosine: long vectors would otherwise be similar to everything."""


class Retrieval:
    """Finds candidates by inner product, and the popular items when there is no query.

    Args:
        bundle: item vectors, item columns and popularity.
        exact_limit: largest catalogue that is scanned in full; see `FaissIndex`.
    """

    def __init__(self, bundle: Bundle, *, exact_limit: int = EXACT_LIMIT) -> None:
        vectors_RD = np.asarray(bundle.vectors_RD)
        self._vectors_ND = vectors_RD[FIRST_ITEM_ROW:]
        self._norms_N = np.maximum(np.linalg.norm(self._vectors_ND, axis=1), np.finfo(np.float32).tiny)
        self._index = FaissIndex(self._vectors_ND, _reference_queries(bundle), exact_limit=exact_limit)
        self._filters = ItemFilters(bundle.items, bundle.manifest.item_features)
        self._counts_R = bundle.counts_R.astype(np.float32)
        self._popular_N = FIRST_ITEM_ROW + np.argsort(-bundle.counts_R[FIRST_ITEM_ROW:], kind="stable")
        self._num_candidates = bundle.manifest.num_candidates

    async def run(self, request: RecommendRequest, query: Query) -> Candidates:
        """As many candidates as the ranker was trained to order, and at least k, as far as the filters leave them.

        Raises:
            UserError: a filter names an unknown column, or does not fit it.
        """
        allowed_R = self._allowed(request.filters, query.seen_S)
        if query.query_D is None:
            return self._popular(request.k, allowed_R)
        allowed_N = None if allowed_R is None else allowed_R[FIRST_ITEM_ROW:]
        positions_C, scores_C = self._index.search(query.query_D, max(request.k, self._num_candidates), allowed_N)
        return Candidates(positions_C + FIRST_ITEM_ROW, scores_C, PERSONAL)

    async def similar(self, row: int, k: int) -> Candidates:
        """The k items whose vectors point most nearly the same way as that of item `row`, without itself; scores are cosines."""
        position = row - FIRST_ITEM_ROW
        others_N = np.ones(len(self._vectors_ND), dtype=bool)
        others_N[position] = False
        pool_C, products_C = self._index.search(self._vectors_ND[position], max(_SIMILAR_POOL, 2 * k), others_N)
        cosines_C: Float32Array = (products_C / (self._norms_N[pool_C] * self._norms_N[position])).astype(np.float32)
        best_C = np.argsort(-cosines_C, kind="stable")[:k]
        return Candidates(pool_C[best_C] + FIRST_ITEM_ROW, cosines_C[best_C], SIMILAR)

    def _allowed(self, filters: Sequence[Filter], seen_S: Int64Array) -> Mask | None:
        if not filters and not len(seen_S):
            return None
        allowed_R = self._filters.mask(filters)
        allowed_R[seen_S] = False
        return allowed_R

    def _popular(self, k: int, allowed_R: Mask | None) -> Candidates:
        rows_C = self._popular_N[:k] if allowed_R is None else self._popular_N[allowed_R[self._popular_N]][:k]
        return Candidates(rows_C, self._counts_R[rows_C], POPULARITY)


def _reference_queries(bundle: Bundle) -> Float32Array:
    queries = bundle.reference().column("query").combine_chunks()
    return np.asarray(queries.flatten().to_numpy(), dtype=np.float32).reshape(len(queries), bundle.manifest.dim)
