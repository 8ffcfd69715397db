"""Search of item vectors under a filter: a scan of few allowed vectors, an index for many.

Shape legend: N vectors, D vector width, Q queries.
"""

from collections.abc import Sequence

import numpy as np

from passerelle.arrays import Float32Array
from serving.retrievers.base import Hits, Index, Mask, merged, scan

SCAN_LIMIT = 30_000
"""Up to so many allowed vectors a scan takes about 3 ms, and is exact; for more, an index is faster."""


class Retriever:
    """Finds the vectors with the largest inner products among those allowed.

    Each search counts its allowed vectors: few are scanned, many are searched by an index.
    Vectors that were added after the index was built are scanned.

    Args:
        vectors_ND: float32; may be memory-mapped.
        index: over the first of them; without one, every search is a scan.
        scan_limit: up to so many allowed vectors are scanned although there is an index.
    """

    def __init__(
        self, vectors_ND: Float32Array, index: Index | None = None, *, scan_limit: int = SCAN_LIMIT
    ) -> None:
        assert index is None or index.num_vectors <= len(vectors_ND), "an index of other vectors"
        self._vectors_ND = vectors_ND
        self._index = index
        self._scan_limit = scan_limit

    def search(
        self, queries_QD: Float32Array, k: int, allowed_Q: Sequence[Mask | None] | None = None
    ) -> list[Hits]:
        """Returns for each query the k best allowed positions; fewer only where fewer are allowed.

        Args:
            queries_QD: float32.
            allowed_Q: a mask [N] for each query, or None where all are allowed.
        """
        masks = [None] * len(queries_QD) if allowed_Q is None else list(allowed_Q)
        found: list[Hits | None] = [None] * len(masks)
        indexed = [
            query
            for query, allowed_N in enumerate(masks)
            if self._index is not None and self._exceeds_scan_limit(allowed_N)
        ]
        by_index = self._by_index(queries_QD[indexed], k, [masks[query] for query in indexed])
        for query, hits in zip(indexed, by_index, strict=True):
            found[query] = hits
        return [
            hits if hits is not None else scan(self._vectors_ND, query_D, k, allowed_N)
            for hits, query_D, allowed_N in zip(found, queries_QD, masks, strict=True)
        ]

    def _exceeds_scan_limit(self, allowed_N: Mask | None) -> bool:
        count = len(self._vectors_ND) if allowed_N is None else int(np.count_nonzero(allowed_N))
        return count > self._scan_limit

    def _by_index(self, queries_QD: Float32Array, k: int, masks: Sequence[Mask | None]) -> list[Hits]:
        if self._index is None or not len(queries_QD):
            return []
        num_indexed = self._index.num_vectors
        found = self._index.search(
            queries_QD, k, [None if allowed_N is None else allowed_N[:num_indexed] for allowed_N in masks]
        )
        for query, (query_D, allowed_N) in enumerate(zip(queries_QD, masks, strict=True)):
            num_allowed = num_indexed if allowed_N is None else int(np.count_nonzero(allowed_N[:num_indexed]))
            # an index may find fewer than it should: a scan keeps the promise of `search`
            if len(found[query]) < min(k, num_allowed):
                found[query] = scan(
                    self._vectors_ND[:num_indexed],
                    query_D,
                    k,
                    None if allowed_N is None else allowed_N[:num_indexed],
                )
        if num_indexed == len(self._vectors_ND):
            return found
        tails = [
            scan(self._vectors_ND, query_D, k, allowed_N, start=num_indexed)
            for query_D, allowed_N in zip(queries_QD, masks, strict=True)
        ]
        return [merged(parts, k) for parts in zip(found, tails, strict=True)]
