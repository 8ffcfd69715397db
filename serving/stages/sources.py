"""Where candidates come from: each source finds item rows under the same mask, with scores in its own unit.

Shape legend: R item rows (special rows included), N = R - FIRST_ITEM_ROW items, D vector width, K found, A anchors.
"""

from dataclasses import dataclass

import numpy as np

from passerelle.arrays import Float32Array, Int64Array
from passerelle.bundle import Bundle
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue, Eligible
from serving.catalogue.columns import Mask
from serving.config import SourceConfig
from serving.retrievers.retriever import Retriever
from serving.schemas.recommend import Context
from serving.stages.trends import Trends
from serving.stages.types import PERSONAL, POPULARITY, POPULARITY_NEAR, SIMILAR, Found, Query

SIMILAR_POOL = 1_000
"""Neighbours by inner product that are ordered by cosine: long vectors would otherwise be similar to everything."""
_STRIDE = 4096


@dataclass(frozen=True)
class Search:
    """What all sources of one request share."""

    query: Query
    anchors_A: Int64Array
    """Item rows that the request names for `similar`."""
    catalogue: Catalogue
    eligible: Eligible
    """What meets filters and hard rules."""
    allowed_R: Mask | None
    """The same without seen items; None allows all."""
    context: Context
    timestamp_ms: int

    @property
    def allowed(self) -> Mask:
        """[R]."""
        return self.eligible.rows_R if self.allowed_R is None else self.allowed_R


class Sources:
    """All sources of a bundle.

    Args:
        bundle: vectors and popularity.
        retriever: searches the vectors.
        trends: of the half-lives that sources name.
    """

    def __init__(self, bundle: Bundle, retriever: Retriever, trends: Trends) -> None:
        self._vectors_ND = np.asarray(bundle.vectors_RD)[FIRST_ITEM_ROW:]
        self._norms_N = np.maximum(np.linalg.norm(self._vectors_ND, axis=1), np.finfo(np.float32).tiny)
        self._retriever = retriever
        self._counts_R = bundle.counts_R.astype(np.float32)
        self._popular_N = FIRST_ITEM_ROW + np.argsort(-bundle.counts_R[FIRST_ITEM_ROW:], kind="stable")
        self._trends = trends

    def find(self, source: SourceConfig, search: Search, k: int) -> Found | None:
        """What one source finds, at most k; None where it lacks what it starts from (a query, a place, items to be similar to)."""
        match source.kind:
            case "personal":
                return self._personal(search, k)
            case "similar":
                anchors_A = (
                    search.anchors_A if len(search.anchors_A) else search.query.history_L[-source.last :]
                )
                return self.similar(anchors_A, search.allowed_R, k) if len(anchors_A) else None
            case "popular":
                return self._popular(source, search, k)
            case "trending":
                ranked_N, scores_R = self._trends.trend(source.half_life_days)
                return _in_order(source.kind, ranked_N, scores_R, search.allowed_R, k)
            case "new" | "soon":
                return self._by_time(source, search, k)
            case "near":
                return self._near(source, search, k)

    def similar(self, anchors_A: Int64Array, allowed_R: Mask | None, k: int) -> Found:
        """Items whose vectors point most nearly the way of the anchors together, without them; scores are cosines."""
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
        """Items with the most events."""
        return _in_order(POPULARITY, self._popular_N, self._counts_R, allowed_R, k)

    def _personal(self, search: Search, k: int) -> Found | None:
        if search.query.query_D is None:
            return None
        allowed_N = None if search.allowed_R is None else search.allowed_R[FIRST_ITEM_ROW:]
        hits = self._retriever.search(search.query.query_D[None], k, [allowed_N])[0]
        return Found(PERSONAL, hits.positions_K + FIRST_ITEM_ROW, hits.scores_K)

    def _popular(self, source: SourceConfig, search: Search, k: int) -> Found:
        place = search.context.place
        if source.radius_km is None or source.column is None or place is None:
            return self.popular(search.allowed_R, k)
        near_R = search.catalogue.within(
            source.column, (place.latitude, place.longitude), source.radius_km, search.eligible
        )
        if search.allowed_R is not None:
            near_R &= search.allowed_R
        return _in_order(POPULARITY_NEAR, self._popular_N, self._counts_R, near_R, k)

    def _by_time(self, source: SourceConfig, search: Search, k: int) -> Found:
        """`new`: the latest not in the future. `soon`: the earliest not past. Scores are milliseconds from now, negative."""
        assert source.column is not None, "configuration requires it"
        rows_K, aways_ms_K = search.catalogue.first_in_time(
            source.column,
            search.timestamp_ms,
            k,
            search.allowed,
            search.eligible.units_U,
            ahead=source.kind == "soon",
        )
        return Found(source.kind, rows_K, -aways_ms_K.astype(np.float32))

    def _near(self, source: SourceConfig, search: Search, k: int) -> Found | None:
        """The nearest; scores are kilometres, negative so that more is better."""
        assert source.column is not None, "configuration requires it"
        place = search.context.place
        if place is None:
            return None
        point = place.latitude, place.longitude
        rows_K, distances_K = search.catalogue.nearest(
            source.column, point, k, search.allowed, search.eligible.units_U
        )
        return Found(source.kind, rows_K, -distances_K.astype(np.float32))


def _in_order(
    name: str, ranked_N: Int64Array, scores_R: Float32Array, allowed_R: Mask | None, k: int
) -> Found:
    """The first k allowed of rows in an order; looks no further than it has to."""
    if allowed_R is None:
        rows_K = ranked_N[:k]
        return Found(name, rows_K, scores_R[rows_K])
    parts: list[Int64Array] = []
    start, wanted, stride = 0, k, max(_STRIDE, 2 * k)
    while wanted > 0 and start < len(ranked_N):
        part = ranked_N[start : start + stride]
        parts.append(part[allowed_R[part]][:wanted])
        wanted -= len(parts[-1])
        start, stride = start + stride, 2 * stride
    rows_K = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return Found(name, rows_K, scores_R[rows_K])
