"""A Faiss index: an inverted file of vectors, memory-mapped, searched under bitmaps.

No other module imports faiss.
Shape legend: N vectors, D vector width, Q queries, K results, L lists, P lists of one round.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import faiss as typed_faiss
import numpy as np

from passerelle.arrays import Float32Array, Int64Array
from serving.retrievers.base import Hits, Mask, best, merged

faiss: Any = typed_faiss  # its type hints lack what its Python layer adds

FILE = "vectors.faiss"
FIRST_PROBES = 8
SETTLED = 0.01
"""A search ends when doubling the lists changes at most this share of its results."""
_LISTS_PER_ROOT = 2
_TRAINING_VECTORS_PER_LIST = 64
_SEED = 1234


class FaissIndex:
    """Lists of vectors, searched from the nearest list on until more lists no longer change the result.

    Under a filter that leaves few vectors, or only vectors far from the query, a search probes more lists.

    Args:
        path: a file that `build` wrote.
        probes: number of lists of the first round; each further round doubles the lists searched so far.
    """

    def __init__(self, path: Path, *, probes: int = FIRST_PROBES) -> None:
        self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        # prefetching threads cost 2 ms a search, and pages are read once
        faiss.downcast_InvertedLists(self._index.invlists).prefetch_nthread = 0
        self._centres_LD: Float32Array = self._index.quantizer.reconstruct_n(0, self._index.nlist)
        self._probes = min(probes, self._index.nlist)

    @classmethod
    def build(cls, vectors_ND: Float32Array, directory: Path) -> Self:
        """Writes the index of some vectors into a directory, and opens it."""
        num_vectors, dim = vectors_ND.shape
        lists = min(num_vectors, int(_LISTS_PER_ROOT * np.sqrt(num_vectors)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = _SEED
        index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _TRAINING_VECTORS_PER_LIST, 1
        contiguous_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
        index.train(contiguous_ND)
        index.add(contiguous_ND)
        faiss.write_index(index, str(directory / FILE))
        return cls(directory / FILE)

    @property
    def num_vectors(self) -> int:
        return int(self._index.ntotal)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"probes": self._probes, "lists": int(self._index.nlist)}

    def increase_probes(self) -> bool:
        if 2 * self._probes > self._index.nlist:
            return False
        self._probes *= 2
        return True

    def search(self, queries_QD: Float32Array, k: int, allowed_Q: Sequence[Mask | None]) -> list[Hits]:
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        nearness_QL = queries_QD @ self._centres_LD.T
        searches = zip(queries_QD, nearness_QL, allowed_Q, strict=True)
        return [self._one(query_D, nearness_L, k, allowed_N) for query_D, nearness_L, allowed_N in searches]

    def _one(self, query_D: Float32Array, nearness_L: Float32Array, k: int, allowed_N: Mask | None) -> Hits:
        selector = (
            None if allowed_N is None else faiss.IDSelectorBitmap(np.packbits(allowed_N, bitorder="little"))
        )
        lists_L = np.argsort(-nearness_L)
        found = Hits(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        searched, next_round = 0, self._probes
        while searched < len(lists_L):
            lists_P = lists_L[searched : searched + next_round]
            more = self._round(query_D, lists_P, nearness_L[lists_P], k, selector)
            worst = found.scores_K[-1] if len(found) == k else -np.inf
            changed = int(np.count_nonzero(more.scores_K > worst))
            settled = searched > 0 and len(found) == k and changed <= SETTLED * k
            found = merged((found, more), k)
            searched += len(lists_P)
            next_round = searched
            if settled:
                break
        return found

    def _round(
        self, query_D: Float32Array, lists_P: Int64Array, nearness_P: Float32Array, k: int, selector: Any
    ) -> Hits:
        """Returns the k best of some lists.

        The Python layer of Faiss has no such search with a selector, its C++ layer has.
        """
        positions_K, scores_K = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.float32)
        arrays = [np.ascontiguousarray(array) for array in (lists_P, nearness_P)]
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=len(lists_P))
        pointers = [faiss.swig_ptr(array) for array in (*arrays, scores_K, positions_K)]
        self._index.search_preassigned_c(1, faiss.swig_ptr(query_D), k, *pointers, False, parameters)
        is_found_K = positions_K >= 0
        return best(positions_K[is_found_K], scores_K[is_found_K], k)
