"""The plan of a search: scan what a filter leaves, or ask an index under the filter.

Shape legend: N vectors, D vector width, Q queries.
"""

from collections.abc import Sequence

import numpy as np

from passerelle.arrays import Float32Array
from serving.retrievers.base import Hits, Index, Mask, merged, scan

SCAN_LIMIT = 30_000
"""Up to so many survivors a scan takes about 3 ms, and is exact; above, an index is faster."""


class Retriever:
    """The vectors with the largest inner product, among those allowed.

    How many are allowed is counted for each search. Few of them are scanned; of many, an index finds the best of those it knows,
    and what came after it was built is scanned. Without an index all is scanned.

    Args:
        vectors_ND: float32; may be memory-mapped.
        index: over the first of them; None scans always.
        scan_limit: most survivors that are scanned though there is an index.
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
        """For each query the k best allowed positions; fewer only where fewer are allowed.

        Args:
            queries_QD: float32.
            allowed_Q: a mask [N] for each query, or None where all are allowed.
        """
        masks = [None] * len(queries_QD) if allowed_Q is None else list(allowed_Q)
        found: list[Hits | None] = [None] * len(masks)
        indexed = [
            place
            for place, allowed_N in enumerate(masks)
            if self._index is not None and self._many(allowed_N)
        ]
        for place, hits in zip(
            indexed, self._by_index(queries_QD[indexed], k, [masks[place] for place in indexed]), strict=True
        ):
            found[place] = hits
        return [
            hits if hits is not None else scan(self._vectors_ND, query_D, k, allowed_N)
            for hits, query_D, allowed_N in zip(found, queries_QD, masks, strict=True)
        ]

    def _many(self, allowed_N: Mask | None) -> bool:
        count = len(self._vectors_ND) if allowed_N is None else int(np.count_nonzero(allowed_N))
        return count > self._scan_limit

    def _by_index(self, queries_QD: Float32Array, k: int, masks: Sequence[Mask | None]) -> list[Hits]:
        if self._index is None or not len(queries_QD):
            return []
        known = self._index.num_vectors
        found = self._index.search(
            queries_QD, k, [None if allowed_N is None else allowed_N[:known] for allowed_N in masks]
        )
        for place, (query_D, allowed_N) in enumerate(zip(queries_QD, masks, strict=True)):
            allowed = known if allowed_N is None else int(np.count_nonzero(allowed_N[:known]))
            if len(found[place]) < min(k, allowed):  # an index that gave up: what is promised is promised
                found[place] = scan(
                    self._vectors_ND[:known], query_D, k, None if allowed_N is None else allowed_N[:known]
                )
        if known == len(self._vectors_ND):
            return found
        tails = [
            scan(self._vectors_ND, query_D, k, allowed_N, start=known)
            for query_D, allowed_N in zip(queries_QD, masks, strict=True)
        ]
        return [merged(parts, k) for parts in zip(found, tails, strict=True)]
