"""Second stage: from a query to candidates.

Filters, eligibility rules and seen items become one mask, under which every source searches.

Shape legend: R item rows (special rows included), D vector width, C candidates, K found by one source.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from passerelle.arrays import Int64Array
from passerelle.bundle import Bundle
from passerelle.id_map import Id, parsed
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Eligible
from serving.catalogue.columns import Columns, Mask
from serving.catalogue.filter_budget import expected_work
from serving.config import Playlist, ServingConfig
from serving.deadline import Deadline
from serving.events.base import EventStore
from serving.retrievers.index_store import open_retriever
from serving.retrievers.retriever import SCAN_LIMIT
from serving.schemas.recommend import ItemsRequest, RecommendRequest, SimilarRequest
from serving.source_config import CandidateSource, SimilarSource
from serving.stages.candidate_set import (
    CandidateSet,
    add_pins,
    backfill,
    interleave,
    productive_sources,
    rank_by_query,
)
from serving.stages.eligibility import Eligibility
from serving.stages.offer_attachment import attach_offers
from serving.stages.pins import PinnedRows
from serving.stages.search_threads import HEAVY_CONDITIONS, HEAVY_WORK, SearchThreads
from serving.stages.sources import Search, Sources, point_of
from serving.stages.trends import Trends
from serving.stages.types import ENCODER_DOWN, POPULAR, Candidates, Found, Query, RequestTime

DEFAULT_PLAYLIST = Playlist()
EMPTY_QUERY = Query(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), None, 0, 0.0)
MAX_INLINE_ITEMS = 50_000
"""Catalogues of more items and offers are searched in a thread.

A thread costs a tenth of a millisecond; without one, every other request waits for the search.
"""
MAX_INLINE_WORK = 2_000_000
"""Filters with more expected work are evaluated in a thread, whatever the size of the catalogue."""


class Retrieval:
    """Finds candidates.

    Args:
        bundle: vectors, item columns and event counts.
        config: playlists, rules, offers.
        events: events since the bundle was made, for trends.
        items: the columns of items, where other stages share them.
        scan_limit: up to so many eligible items are scanned although there is an index; see `Retriever`.
        max_inline_items: see `MAX_INLINE_ITEMS`.

    Raises:
        UserError: the configuration names an unknown column or item, or the index has other vectors.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: ServingConfig | None = None,
        events: EventStore | None = None,
        items: Columns | None = None,
        *,
        scan_limit: int = SCAN_LIMIT,
        max_inline_items: int = MAX_INLINE_ITEMS,
    ) -> None:
        self._config = config or ServingConfig()
        half_lives_days = {
            source.half_life_days for _, source in self._config.all_sources() if source.kind == "trending"
        }
        self.trends = Trends(bundle, half_lives_days, events)
        self._item_ids = bundle.item_ids
        self._num_candidates = bundle.manifest.num_candidates
        self._vectors_RD = np.asarray(bundle.vectors_RD)
        retriever, self.index = open_retriever(bundle, scan_limit=scan_limit)
        self._sources = Sources(bundle, retriever, self.trends)
        self._eligibility = Eligibility(bundle, self._config, items)
        self._pins = PinnedRows(self._config, bundle.item_ids)
        self._max_inline_items = max_inline_items
        self._threads = SearchThreads()

    async def run(
        self,
        request: RecommendRequest,
        query: Query,
        request_time: RequestTime,
        playlist: Playlist = DEFAULT_PLAYLIST,
        timeout_s: float = math.inf,
    ) -> Candidates:
        """Returns as many candidates as the ranker was trained to order, and at least k.

        There are fewer only where filters and rules leave fewer.

        Raises:
            UserError: a filter names an unknown column, does not fit it, or takes too much work.
            DeadlineError: the time passes.
        """
        self.trends.start_refreshing()
        deadline = Deadline(1e3 * timeout_s)
        return await self._run_in_thread(
            request, lambda: self._run(request, query, request_time, playlist, deadline)
        )

    async def similar(
        self,
        request: SimilarRequest,
        rows: Sequence[int],
        k: int,
        request_time: RequestTime,
        timeout_s: float = math.inf,
    ) -> Candidates:
        """Returns the k items with the largest cosines with the mean direction of `rows`, without these.

        Raises:
            UserError: a filter names an unknown column, does not fit it, or takes too much work.
            DeadlineError: the time passes.
        """
        deadline = Deadline(1e3 * timeout_s)
        return await self._run_in_thread(
            request, lambda: self._similar(request, rows, k, request_time, deadline)
        )

    async def ready(self) -> bool:
        """Returns True: everything that is searched is loaded by the constructor."""
        return True

    @property
    def num_abandoned(self) -> int:
        """Number of searches that still run though their request has ended."""
        return self._threads.num_abandoned

    async def _run_in_thread(self, request: ItemsRequest, search: Callable[[], Candidates]) -> Candidates:
        """Runs a search, in a thread where it may take long.

        Other requests are then answered meanwhile, and a deadline can end the wait.
        """
        size = self._eligibility.catalogue.size
        visits = self._eligibility.catalogue.max_visits
        work = expected_work(request.filters, visits)
        if size <= self._max_inline_items and work <= MAX_INLINE_WORK:
            return search()
        is_heavy = work > max(HEAVY_WORK, HEAVY_CONDITIONS * visits)
        return await self._threads.run(search, is_heavy=is_heavy)

    def _run(
        self,
        request: RecommendRequest,
        query: Query,
        request_time: RequestTime,
        playlist: Playlist,
        deadline: Deadline,
    ) -> Candidates:
        search = self._search(request, query, request_time, playlist, deadline)
        k = request.k or playlist.size
        limit = max(k, self._num_candidates)
        found = self._find_personal(playlist, search, limit)
        if found is not None and query.query_D is not None:
            merged = rank_by_query(found, query.query_D, self._vectors_RD)
            filled = self._backfill(merged, search, k)
            mixed, fallback = False, None
        else:
            found = self._find(self._cold_sources(playlist, query), search, limit)
            merged = interleave(found).first(limit)
            filled = self._backfill(merged, search, k)
            mixed = len(productive_sources(found)) > 1 or len(filled) > len(merged)
            fallback = "+".join(dict.fromkeys(productive_sources(filled.found))) or POPULAR
        pinned = self._add_pins(filled, search, playlist)
        offers = attach_offers(
            self._config.offers, search.catalogue, search.eligible, search.point, pinned.rows_C
        )
        return Candidates(
            pinned.rows_C, pinned.scores_C, pinned.found, mixed, fallback, offers, num_found=len(merged)
        )

    def _similar(
        self,
        request: SimilarRequest,
        rows: Sequence[int],
        k: int,
        request_time: RequestTime,
        deadline: Deadline,
    ) -> Candidates:
        catalogue = self._eligibility.catalogue
        eligible = self._eligibility.eligible(catalogue, request, DEFAULT_PLAYLIST, request_time, deadline)
        found = self._sources.similar(np.array(rows), _without(eligible, EMPTY_QUERY.seen_S), k)
        offers = attach_offers(
            self._config.offers, catalogue, eligible, point_of(request.context), found.rows_K
        )
        return Candidates(found.rows_K, found.scores_K, (found,), offers=offers)

    def _search(
        self,
        request: RecommendRequest,
        query: Query,
        request_time: RequestTime,
        playlist: Playlist,
        deadline: Deadline,
    ) -> Search:
        catalogue = self._eligibility.catalogue
        eligible = self._eligibility.eligible(catalogue, request, playlist, request_time, deadline)
        return Search(
            query=query,
            anchors_A=self._known_rows(request.similar_to, "similar_to"),
            catalogue=catalogue,
            eligible=eligible,
            unseen_R=_without(eligible, query.seen_S),
            point=point_of(request.context),
            timestamp_ms=request_time.timestamp_ms,
            deadline=deadline,
        )

    def _known_rows(self, item_ids: Sequence[Id], field: str) -> Int64Array:
        """Returns the rows of those ids that are in the catalogue."""
        rows = self._item_ids.rows(
            [parsed(self._item_ids, item_id, f"{field}.{index}") for index, item_id in enumerate(item_ids)]
        )
        return rows[rows >= FIRST_ITEM_ROW]

    def _find(self, sources: Sequence[CandidateSource], search: Search, limit: int) -> tuple[Found, ...]:
        found = []
        for source in sources:
            search.deadline.check()
            part = self._sources.find(source, search, source.candidates or limit)
            if part is not None:
                found.append(part)
        return tuple(found)

    def _find_personal(self, playlist: Playlist, search: Search, limit: int) -> tuple[Found, ...] | None:
        """Returns what the playlist's sources find; None where the answer cannot be personal.

        That is so without a query, and where no source finds any of the allowed items.
        Each source may lack a place in the context, for instance.
        """
        if search.query.query_D is None:
            return None
        found = self._find(playlist.sources, search, limit)
        return found if found and (productive_sources(found) or not search.allowed_R.any()) else None

    def _cold_sources(self, playlist: Playlist, query: Query) -> Sequence[CandidateSource]:
        """Returns the sources for cold users, or those that replace the playlist's if the encoder failed."""
        if ENCODER_DOWN in query.degraded and len(query.history_L):
            return _without_encoder(playlist.sources)
        return playlist.cold_sources or self._config.cold_start.sources

    def _backfill(self, candidates: CandidateSet, search: Search, k: int) -> CandidateSet:
        """Adds popular items where there are fewer than k candidates, and more are allowed."""
        if len(candidates) >= k or len(candidates) == np.count_nonzero(search.allowed_R):
            return candidates
        popular = self._sources.popular(search.unseen_R, k)
        return backfill(candidates, popular, search.query.query_D, self._vectors_RD)

    def _add_pins(self, candidates: CandidateSet, search: Search, playlist: Playlist) -> CandidateSet:
        """Adds the pinned items that filters and rules allow."""
        ordering = playlist.ordering
        if not ordering.pins:
            return candidates
        allowed_R = search.eligible.rows_R if ordering.keep_seen_pins else search.allowed_R
        pinned_P = self._pins.allowed_P(playlist, allowed_R)
        return add_pins(candidates, pinned_P, search.query.query_D, self._vectors_RD)


def _without(eligible: Eligible, seen_S: Int64Array) -> Mask | None:
    """Returns the eligible items that were not seen [R]; None where that is every item."""
    unseen_R = eligible.rows_R.copy()
    unseen_R[seen_S] = False
    return None if unseen_R[FIRST_ITEM_ROW:].all() else unseen_R


def _without_encoder(sources: Sequence[CandidateSource]) -> Sequence[CandidateSource]:
    """Returns the sources with `similar` instead of `personal`, unless `similar` is among them already."""
    if any(source.kind == "similar" for source in sources):
        return [source for source in sources if source.kind != "personal"]
    return [
        SimilarSource(candidates=source.candidates) if source.kind == "personal" else source
        for source in sources
    ]
