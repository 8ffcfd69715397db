"""Inner-product search in memory: exact for small catalogues, an inverted file for large ones. The only file that knows faiss.

Shape legend: N vectors, D width, K results, Q sample queries.
"""

from typing import Any

import faiss as typed_faiss
import numpy as np
import numpy.typing as npt

faiss: Any = typed_faiss  # its type hints know nothing of what its Python layer adds: keyword parameters, arrays as bitmaps

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

EXACT_LIMIT = 50_000
"""Up to here a full scan takes about a millisecond: nothing to gain from an approximation."""

MIN_RECALL = 0.99
_SAMPLE_K = 100
_TRAINING_VECTORS_PER_LIST = 64
_SEED = 1234


class FaissIndex:
    """Positions of the vectors with the largest inner product, among those allowed.

    Above `exact_limit` the number of lists looked at is doubled until recall@100 of the sample queries, against the exact answer, is at
    least 0.99.

    Args:
        vectors_ND: float32.
        samples_QD: queries of the kind that will come, float32.
        exact_limit: largest N that is scanned in full.
    """

    def __init__(self, vectors_ND: Float32Array, samples_QD: Float32Array, *, exact_limit: int = EXACT_LIMIT) -> None:
        num_vectors, dim = vectors_ND.shape
        vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
        self._num_vectors = num_vectors
        self._lists = 0 if num_vectors <= exact_limit else int(4 * np.sqrt(num_vectors))
        self._probes = 0
        if not self._lists:
            self._index = faiss.IndexFlatIP(dim)
            self._index.add(vectors_ND)
            return
        self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, self._lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed = _SEED
        self._index.cp.max_points_per_centroid = _TRAINING_VECTORS_PER_LIST
        self._index.train(vectors_ND)
        self._index.add(vectors_ND)
        self._probes = self._enough_probes(samples_QD)

    @property
    def exact(self) -> bool:
        """Whether every search is a full scan."""
        return not self._lists

    def search(self, query_D: Float32Array, k: int, allowed_N: Mask | None = None) -> tuple[Int64Array, Float32Array]:
        """The k best allowed positions, best first, equal scores by position; fewer than k only when fewer are allowed.

        Args:
            query_D: float32.
            allowed_N: None allows all.

        Returns:
            positions int64 [K], inner products float32 [K].
        """
        allowed = self._num_vectors if allowed_N is None else int(np.count_nonzero(allowed_N))
        k = min(k, allowed)
        if k == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        # The fewer vectors are allowed, the more lists it takes to meet enough of them: in the end all, which is exact.
        probes = min(self._lists, self._probes * self._num_vectors // allowed)
        positions_K, scores_K = self._search(query_D[None], k, probes, allowed_N)
        if positions_K[0, -1] < 0:
            positions_K, scores_K = self._search(query_D[None], k, self._lists, allowed_N)
        order = np.lexsort((positions_K[0], -scores_K[0]))
        return positions_K[0, order], scores_K[0, order]

    def _search(self, queries_QD: Float32Array, k: int, probes: int, allowed_N: Mask | None = None) -> tuple[Int64Array, Float32Array]:
        selector = None if allowed_N is None else faiss.IDSelectorBitmap(np.packbits(allowed_N, bitorder="little"))
        kind, options = (faiss.SearchParameters, {}) if self.exact else (faiss.SearchParametersIVF, {"nprobe": probes})
        parameters = kind(sel=selector, **options)
        scores_QK, positions_QK = self._index.search(np.ascontiguousarray(queries_QD), k, params=parameters)
        return positions_QK, scores_QK

    def _enough_probes(self, queries_QD: Float32Array) -> int:
        exact_QK, _ = self._search(queries_QD, _SAMPLE_K, self._lists)
        probes = 16
        while probes < self._lists:
            found_QK, _ = self._search(queries_QD, _SAMPLE_K, probes)
            hits = sum(len(np.intersect1d(found, exact)) for found, exact in zip(found_QK, exact_QK, strict=True))
            if hits >= MIN_RECALL * exact_QK.size:
                return probes
            probes *= 2
        return self._lists
