"""The result of a search, the interface of an index, and the exact scan.

Shape legend: N vectors, D vector width, Q queries, K results, S vectors that are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from passerelle.arrays import BoolArray, Float32Array, Int64Array

Mask = BoolArray

_CHUNK = 65_536
_DENSE_SHARE = 0.125
"""With a larger share of allowed vectors a scan reads all vectors in order, which is then faster."""


@dataclass(frozen=True)
class Hits:
    """Result of one search, best first, equal scores by position."""

    positions_K: Int64Array
    scores_K: Float32Array
    """Inner products."""

    def __len__(self) -> int:
        return len(self.positions_K)


class Index(Protocol):
    """Approximate search, which `Retriever` uses where there are too many vectors to scan."""

    @property
    def num_vectors(self) -> int:
        """Number of indexed vectors: those at positions below it."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the build, and the number of probes."""

    def search(self, queries_QD: Float32Array, k: int, allowed_Q: Sequence[Mask | None]) -> list[Hits]:
        """Returns for each query the k best allowed positions that the index finds.

        Args:
            queries_QD: float32.
            allowed_Q: a mask of `num_vectors` for each query, or None where all are allowed.
        """

    def increase_probes(self) -> bool:
        """Doubles the number of probes; returns False, and changes nothing, where that is not possible."""


def best(positions_S: Int64Array, scores_S: Float32Array, k: int) -> Hits:
    """Returns the k positions with the largest scores, best first, equal scores by position."""
    if len(scores_S) > k > 0:
        worst = np.partition(scores_S, len(scores_S) - k)[len(scores_S) - k]
        enough_S = scores_S >= worst
        positions_S, scores_S = positions_S[enough_S], scores_S[enough_S]
    order = np.lexsort((positions_S, -scores_S))[:k]
    return Hits(positions_S[order], scores_S[order])


def merged(parts: Sequence[Hits], k: int) -> Hits:
    """Returns the k best of several searches over different vectors."""
    return best(
        np.concatenate([part.positions_K for part in parts]),
        np.concatenate([part.scores_K for part in parts]),
        k,
    )


def scan(
    vectors_ND: Float32Array, query_D: Float32Array, k: int, allowed_N: Mask | None = None, start: int = 0
) -> Hits:
    """Returns the k best allowed vectors at positions `start` and above, by scoring every one of them.

    Args:
        vectors_ND: float32; may be memory-mapped.
        query_D: float32.
        allowed_N: None allows all.
    """
    if allowed_N is not None:
        positions_S = start + np.flatnonzero(allowed_N[start:])
        if len(positions_S) <= _DENSE_SHARE * (len(vectors_ND) - start):
            return best(positions_S, vectors_ND[positions_S] @ query_D, k)
    scores = np.empty(len(vectors_ND) - start, dtype=np.float32)
    for first in range(0, len(scores), _CHUNK):
        np.dot(
            vectors_ND[start + first : start + first + _CHUNK], query_D, out=scores[first : first + _CHUNK]
        )
    if allowed_N is None:
        return best(np.arange(start, len(vectors_ND)), scores, k)
    return best(positions_S, scores[positions_S - start], k)
