"""Sources of candidates: each finds item rows under the same mask, with scores in its own unit.

Shape legend: R item rows (special rows included), N = R - FIRST_ITEM_ROW items, D vector width, K found,
A anchors.
"""

from dataclasses import dataclass
from functools import singledispatchmethod

import numpy as np

from passerelle.arrays import Float32Array, Int64Array
from passerelle.bundle import Bundle
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue, Eligible
from serving.catalogue.columns import Mask
from serving.catalogue.strides import growing_slices
from serving.deadline import Deadline
from serving.retrievers.retriever import Retriever
from serving.schemas.recommend import Context
from serving.source_config import (
    CandidateSource,
    NearSource,
    NewSource,
    PersonalSource,
    PopularSource,
    SimilarSource,
    SoonSource,
    TrendingSource,
)
from serving.stages.trends import Trends
from serving.stages.types import PERSONAL, POPULAR, SIMILAR, Found, Query

SIMILAR_POOL = 1_000
"""Neighbours by inner product that are ordered by cosine.

Without this, long vectors would be similar to everything.
"""


@dataclass(frozen=True)
class Search:
    """Input that all sources of one request share."""

    query: Query
    anchors_A: Int64Array
    """Item rows that the request names for `similar`."""
    catalogue: Catalogue
    eligible: Eligible
    """Items and offers that meet filters and eligibility rules."""
    unseen_R: Mask | None
    """Eligible items without seen ones; None allows all items."""
    point: tuple[float, float] | None
    """Latitude and longitude of the place in the request's context."""
    timestamp_ms: int
    deadline: Deadline

    @property
    def allowed_R(self) -> Mask:
        """`unseen_R`, as a mask in any case."""
        return self.eligible.rows_R if self.unseen_R is None else self.unseen_R


def point_of(context: Context) -> tuple[float, float] | None:
    """Returns the latitude and longitude of the place in a request's context."""
    return None if context.place is None else (context.place.latitude, context.place.longitude)


class Sources:
    """All sources of a bundle.

    Args:
        bundle: vectors and event counts.
        retriever: searches the vectors.
        trends: trends for the half-lives that sources name.
    """

    def __init__(self, bundle: Bundle, retriever: Retriever, trends: Trends) -> None:
        self._vectors_ND = np.asarray(bundle.vectors_RD)[FIRST_ITEM_ROW:]
        self._norms_N = np.maximum(np.linalg.norm(self._vectors_ND, axis=1), np.finfo(np.float32).tiny)
        self._retriever = retriever
        self._counts_R = bundle.counts_R.astype(np.float32)
        self._popular_N = FIRST_ITEM_ROW + np.argsort(-bundle.counts_R[FIRST_ITEM_ROW:], kind="stable")
        self._trends = trends

    @singledispatchmethod
    def find(self, source: CandidateSource, search: Search, k: int) -> Found | None:
        """Returns at most k candidates of one source, best first.

        Returns None where the request lacks the input of the source: a query, a place, or anchors.
        """
        raise NotImplementedError(type(source).__name__)

    @find.register
    def _find_personal(self, source: PersonalSource, search: Search, k: int) -> Found | None:
        """Scores are inner products."""
        if search.query.query_D is None:
            return None
        allowed_N = None if search.unseen_R is None else search.unseen_R[FIRST_ITEM_ROW:]
        hits = self._retriever.search(search.query.query_D[None], k, [allowed_N])[0]
        return Found(PERSONAL, hits.positions_K + FIRST_ITEM_ROW, hits.scores_K)

    @find.register
    def _find_similar(self, source: SimilarSource, search: Search, k: int) -> Found | None:
        """Scores are cosines."""
        anchors_A = search.anchors_A if len(search.anchors_A) else search.query.history_L[-source.last :]
        return self.similar(anchors_A, search.unseen_R, k) if len(anchors_A) else None

    @find.register
    def _find_popular(self, source: PopularSource, search: Search, k: int) -> Found:
        """Scores are event counts."""
        if source.radius_km is None or source.column is None or search.point is None:
            return self.popular(search.unseen_R, k)
        near_R = search.catalogue.within(source.column, search.point, source.radius_km, search.eligible)
        if search.unseen_R is not None:
            near_R &= search.unseen_R
        return self.popular(near_R, k)

    @find.register
    def _find_trending(self, source: TrendingSource, search: Search, k: int) -> Found:
        """Scores are event counts that decay with the half-life."""
        ranked_N, scores_R = self._trends.trend(source.half_life_days)
        return _first_allowed(source.kind, ranked_N, scores_R, search.unseen_R, k)

    @find.register
    def _find_new(self, source: NewSource, search: Search, k: int) -> Found:
        return self._by_time(source, search, k, ahead=False)

    @find.register
    def _find_soon(self, source: SoonSource, search: Search, k: int) -> Found:
        return self._by_time(source, search, k, ahead=True)

    @find.register
    def _find_near(self, source: NearSource, search: Search, k: int) -> Found | None:
        """Scores are distances in kilometres, negative so that larger is better."""
        if search.point is None:
            return None
        rows_K, distances_km_K = search.catalogue.nearest(
            source.column, search.point, k, search.allowed_R, search.eligible.listings_G
        )
        return Found(source.kind, rows_K, -distances_km_K.astype(np.float32))

    def similar(self, anchors_A: Int64Array, allowed_R: Mask | None, k: int) -> Found:
        """Returns the k items with the largest cosines with the mean direction of anchors, without these."""
        positions_A = anchors_A - FIRST_ITEM_ROW
        direction_D = (self._vectors_ND[positions_A] / self._norms_N[positions_A, None]).mean(axis=0)
        direction_D /= max(float(np.linalg.norm(direction_D)), float(np.finfo(np.float32).tiny))
        others_N = (
            np.ones(len(self._vectors_ND), dtype=bool)
            if allowed_R is None
            else allowed_R[FIRST_ITEM_ROW:].copy()
        )
        others_N[positions_A] = False
        pool = self._retriever.search(direction_D[None], max(SIMILAR_POOL, 2 * k), [others_N])[0]
        cosines = (pool.scores_K / self._norms_N[pool.positions_K]).astype(np.float32)
        best = np.argsort(-cosines, kind="stable")[:k]
        return Found(SIMILAR, pool.positions_K[best] + FIRST_ITEM_ROW, cosines[best])

    def popular(self, allowed_R: Mask | None, k: int) -> Found:
        """Returns the k allowed items with the most events."""
        return _first_allowed(POPULAR, self._popular_N, self._counts_R, allowed_R, k)

    def _by_time(self, source: NewSource | SoonSource, search: Search, k: int, *, ahead: bool) -> Found:
        """Scores are milliseconds from now, negative so that larger is better."""
        rows_K, differences_ms_K = search.catalogue.nearest_in_time(
            source.column,
            search.timestamp_ms,
            k,
            search.allowed_R,
            search.eligible.listings_G,
            ahead=ahead,
        )
        return Found(source.kind, rows_K, -differences_ms_K.astype(np.float32))


def _first_allowed(
    name: str, ranked_N: Int64Array, scores_R: Float32Array, allowed_R: Mask | None, k: int
) -> Found:
    """Returns the first k allowed of ranked rows; reads no more of them than it has to."""
    if allowed_R is None:
        rows_K = ranked_N[:k]
        return Found(name, rows_K, scores_R[rows_K])
    parts: list[Int64Array] = []
    missing = k
    for stretch in growing_slices(0, len(ranked_N), k):
        part = ranked_N[stretch]
        parts.append(part[allowed_R[part]][:missing])
        missing -= len(parts[-1])
        if missing <= 0:
            break
    rows_K = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return Found(name, rows_K, scores_R[rows_K])
