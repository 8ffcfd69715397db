"""Merging of what several sources found, as pure functions over a set of candidates.

Shape legend: R item rows (special rows included), D vector width, C candidates, K found by one source,
P pinned items, F filled-in items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passerelle.arrays import Float32Array, Int64Array
from serving.stages.types import PERSONAL, PINNED, POPULAR, Found


@dataclass(frozen=True)
class CandidateSet:
    """Candidates in their order, each item once, and what each source found."""

    rows_C: Int64Array
    scores_C: Float32Array
    found: tuple[Found, ...]

    def __len__(self) -> int:
        return len(self.rows_C)

    def first(self, limit: int) -> "CandidateSet":
        """Returns the first `limit` candidates; `found` stays complete."""
        return CandidateSet(self.rows_C[:limit], self.scores_C[:limit], self.found)


def rank_by_query(found: Sequence[Found], query_D: Float32Array, vectors_RD: Float32Array) -> CandidateSet:
    """Returns all candidates by inner product with the query, equal scores by row."""
    if len(found) == 1 and found[0].source == PERSONAL:
        return CandidateSet(found[0].rows_K, found[0].scores_K, tuple(found))
    rows_C = np.unique(np.concatenate([part.rows_K for part in found] or [np.empty(0, dtype=np.int64)]))
    scores_C = _inner_products(rows_C, query_D, vectors_RD)
    order = np.lexsort((rows_C, -scores_C))
    return CandidateSet(rows_C[order], scores_C[order], tuple(found))


def interleave(found: Sequence[Found]) -> CandidateSet:
    """Returns the first candidate of each source, then the second of each, and so on.

    A row that several sources found has the score of the source where it came first.
    """
    if len(found) == 1:
        return CandidateSet(found[0].rows_K, found[0].scores_K, tuple(found))
    rows = np.concatenate([part.rows_K for part in found] or [np.empty(0, dtype=np.int64)])
    scores = np.concatenate([part.scores_K for part in found] or [np.empty(0, dtype=np.float32)])
    ranks = np.concatenate([np.arange(len(part.rows_K)) for part in found] or [np.empty(0, dtype=np.int64)])
    by_rank = np.argsort(ranks, kind="stable")
    _, first = np.unique(rows[by_rank], return_index=True)
    chosen = by_rank[np.sort(first)]
    return CandidateSet(rows[chosen], scores[chosen], tuple(found))


def backfill(
    candidates: CandidateSet, popular: Found, query_D: Float32Array | None, vectors_RD: Float32Array
) -> CandidateSet:
    """Returns the candidates, followed by the popular items that are not among them.

    Args:
        query_D: popular items are scored by it; None keeps their own scores.
    """
    new_K = ~np.isin(popular.rows_K, candidates.rows_C)
    fill = Found(POPULAR, popular.rows_K[new_K], popular.scores_K[new_K])
    scores_F = fill.scores_K if query_D is None else _inner_products(fill.rows_K, query_D, vectors_RD)
    return CandidateSet(
        np.concatenate([candidates.rows_C, fill.rows_K]),
        np.concatenate([candidates.scores_C, scores_F]),
        group_by_source((*candidates.found, fill)),
    )


def add_pins(
    candidates: CandidateSet, pinned_P: Int64Array, query_D: Float32Array | None, vectors_RD: Float32Array
) -> CandidateSet:
    """Returns the candidates, followed by the pinned rows that are not among them; the ordering moves them.

    Args:
        query_D: new rows are scored by it; None scores them 0.
    """
    new = pinned_P[~np.isin(pinned_P, candidates.rows_C)]
    scores = (
        np.zeros(len(new), dtype=np.float32) if query_D is None else _inner_products(new, query_D, vectors_RD)
    )
    pins = Found(PINNED, pinned_P, np.ones(len(pinned_P), dtype=np.float32))
    return CandidateSet(
        np.concatenate([candidates.rows_C, new]),
        np.concatenate([candidates.scores_C, scores]),
        (*candidates.found, pins),
    )


def group_by_source(found: Sequence[Found]) -> tuple[Found, ...]:
    """Returns each source once, with everything that it found in the given order."""
    parts: dict[str, list[Found]] = {}
    for one in found:
        parts.setdefault(one.source, []).append(one)
    return tuple(
        Found(
            name, np.concatenate([one.rows_K for one in same]), np.concatenate([one.scores_K for one in same])
        )
        for name, same in parts.items()
    )


def productive_sources(found: Sequence[Found]) -> list[str]:
    """Returns the names of the sources that found anything, in order; a name may repeat."""
    return [one.source for one in found if len(one.rows_K)]


def _inner_products(rows: Int64Array, query_D: Float32Array, vectors_RD: Float32Array) -> Float32Array:
    return (vectors_RD[rows] @ query_D).astype(np.float32)
