"""What all ways of searching share: what they find, what an index is, and the exact scan.

Shape legend: N vectors, D vector width, Q queries, K results, S vectors that are allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from passerelle.arrays import BoolArray, Float32Array, Int64Array

Mask = BoolArray

_CHUNK = 65_536
_DENSE_SHARE = 0.125
"""Above it a scan reads all vectors in their order: faster than picking so many of them."""


@dataclass(frozen=True)
class Hits:
    """What one search found, best first, equal scores by position."""

    positions_K: Int64Array
    scores_K: Float32Array
    """Inner products."""

    def __len__(self) -> int:
        return len(self.positions_K)


class Index(Protocol):
    """Finds most of the best without looking at all: what `Retriever` asks where there is too much to scan."""

    @property
    def num_vectors(self) -> int:
        """It knows positions below this."""

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was built with, and how far it looks."""

    def search(self, queries_QD: Float32Array, k: int, allowed_Q: Sequence[Mask | None]) -> list[Hits]:
        """For each query the k best it can find among those allowed (a mask has `num_vectors`, None allows all)."""

    def increase_probes(self) -> bool:
        """From now on look at about twice as much; False when that is not possible."""


def best(positions_S: Int64Array, scores_S: Float32Array, k: int) -> Hits:
    """The k with the largest scores, best first, equal scores by position."""
    if len(scores_S) > k > 0:
        worst = np.partition(scores_S, len(scores_S) - k)[len(scores_S) - k]
        enough_S = scores_S >= worst
        positions_S, scores_S = positions_S[enough_S], scores_S[enough_S]
    order = np.lexsort((positions_S, -scores_S))[:k]
    return Hits(positions_S[order], scores_S[order])


def merged(parts: Sequence[Hits], k: int) -> Hits:
    """The k best of several searches that looked at different vectors."""
    return best(
        np.concatenate([part.positions_K for part in parts]),
        np.concatenate([part.scores_K for part in parts]),
        k,
    )


def scan(
    vectors_ND: Float32Array, query_D: Float32Array, k: int, allowed_N: Mask | None = None, start: int = 0
) -> Hits:
    """The k best, by looking at every allowed vector from position `start` on.

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
