"""Second stage: from a query to candidates. Filters, hard rules and what was seen become one mask, under which every source searches.

Shape legend: R item rows (special rows included), D vector width, C candidates, K found by one source.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from passerelle.arrays import Float32Array, Float64Array, Int64Array
from passerelle.bundle import Bundle
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, Id, parsed
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue, Eligible, item_columns
from serving.catalogue.columns import Columns, Mask
from serving.catalogue.offers import OFFER_ID, read_offers
from serving.config import Playlist, ServingConfig, SourceConfig
from serving.events.base import EventStore
from serving.retrievers.index_store import open_retriever
from serving.retrievers.retriever import SCAN_LIMIT
from serving.schemas.recommend import Context, RecommendRequest, SimilarRequest
from serving.stages.rules import EligibilityRules
from serving.stages.sources import Search, Sources
from serving.stages.trends import Trends
from serving.stages.types import (
    ENCODER_DOWN,
    PERSONAL,
    PINNED,
    POPULARITY,
    Candidates,
    Found,
    Query,
    RequestTime,
)
from serving.watched_file import WatchedFile

PLAIN = Playlist()
APART_FROM = 50_000
"""A thread costs a tenth of a millisecond; without one, every other request waits for the search."""


class Retrieval:
    """Finds candidates.

    Args:
        bundle: vectors, item columns and popularity.
        config: playlists, rules, offers.
        events: what happened since the bundle was made, for trends.
        items: the columns of items, where others share them.
        scan_limit: most survivors of a filter that are scanned although there is an index; see `Retriever`.
        apart_from: catalogues of more items and offers are searched in threads.

    Raises:
        UserError: the configuration names a column or an item that is not there, or the index is of other vectors.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: ServingConfig | None = None,
        events: EventStore | None = None,
        items: Columns | None = None,
        *,
        scan_limit: int = SCAN_LIMIT,
        apart_from: int = APART_FROM,
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
        items, offers = items or item_columns(bundle), self._config.offers
        if offers is None:
            self._offers = None
            self._fixed = self._checked(Catalogue(items))
        else:
            self._offers = WatchedFile(
                offers.file, lambda path: self._checked(Catalogue(items, read_offers(path, bundle.item_ids)))
            )
        self._num_items, self._apart_from = bundle.manifest.num_items, apart_from
        self._rules = EligibilityRules(self._config.rules, bundle.item_ids, self._catalogue)
        self._pins = {
            pin.item_id: self._row(pin.item_id)
            for playlist in self._config.playlists.values()
            for pin in playlist.ordering.pins
        }
        for name, playlist in self._config.playlists.items():
            rows = [self._pins[pin.item_id] for pin in playlist.ordering.pins]
            if len(set(rows)) < len(rows):
                raise UserError(f"playlists.{name}.ordering.pins: an item is pinned twice")

    async def run(
        self, request: RecommendRequest, query: Query, request_time: RequestTime, playlist: Playlist = PLAIN
    ) -> Candidates:
        """As many candidates as the ranker was trained to order, and at least k, as far as filters and rules leave them.

        Raises:
            UserError: a filter names an unknown column, or does not fit it.
        """
        self.trends.keep_up()
        return await self._run_in_thread(lambda: self._run(request, query, request_time, playlist))

    async def similar(
        self, request: SimilarRequest, rows: Sequence[int], k: int, request_time: RequestTime
    ) -> Candidates:
        """The k items whose vectors point most nearly the same way as those of `rows` together, without these; scores are cosines."""
        return await self._run_in_thread(lambda: self._similar(request, rows, k, request_time))

    async def ready(self) -> bool:
        """Returns True: what it searches is loaded when it is made."""
        return True

    async def _run_in_thread(self, work: Callable[[], Candidates]) -> Candidates:
        """In a thread where it may take long: others are answered meanwhile, and a deadline can end the waiting."""
        offers = self._catalogue.offers
        is_large = self._num_items + (0 if offers is None else offers.table.num_rows) > self._apart_from
        return await asyncio.to_thread(work) if is_large else work()

    def _run(
        self, request: RecommendRequest, query: Query, request_time: RequestTime, playlist: Playlist
    ) -> Candidates:
        catalogue, timestamp_ms = self._catalogue, request_time.timestamp_ms
        eligible = self._eligible(
            catalogue, (*request.filters, *playlist.filters), request.context, request_time
        )
        allowed_R = self._without(eligible, query.seen_S)
        anchors_A = self._known_rows(request.similar_to, "similar_to")
        search = Search(query, anchors_A, catalogue, eligible, allowed_R, request.context, timestamp_ms)
        k = request.k or playlist.size
        wanted = max(k, self._num_candidates)
        found = () if query.query_D is None else self._found(playlist.sources, search, wanted)
        if (
            query.query_D is not None
            and found
            and (any(len(one.rows_K) for one in found) or not search.allowed.any())
        ):
            rows_C, scores_C = self._by_query(found, query.query_D)
            fallback, mixed = None, False
        else:  # also where no source finds anything: each lacks a place, for instance
            found = self._cold(playlist, search, wanted)
            rows_C, scores_C = interleave(found)
            rows_C, scores_C = rows_C[:wanted], scores_C[:wanted]
            fallback, mixed = POPULARITY, sum(len(one.rows_K) > 0 for one in found) > 1
        num_found = len(rows_C)
        rows_C, scores_C, found = self._backfill(search, k, rows_C, scores_C, found)
        if fallback is not None:
            fallback = "+".join(dict.fromkeys(one.source for one in found if len(one.rows_K))) or POPULARITY
            mixed = mixed or len(rows_C) > num_found
        rows_C, scores_C, found = self._with_pins(playlist, search, rows_C, scores_C, found)
        return Candidates(
            rows_C, scores_C, found, mixed, fallback, self._best_offers(search, rows_C), num_found
        )

    def _similar(
        self, request: SimilarRequest, rows: Sequence[int], k: int, request_time: RequestTime
    ) -> Candidates:
        catalogue, timestamp_ms = self._catalogue, request_time.timestamp_ms
        eligible = self._eligible(catalogue, request.filters, request.context, request_time)
        found = self._sources.similar(np.array(rows), self._without(eligible, np.empty(0, dtype=np.int64)), k)
        search = Search(
            EMPTY_QUERY, found.rows_K[:0], catalogue, eligible, None, request.context, timestamp_ms
        )
        return Candidates(
            found.rows_K, found.scores_K, (found,), offers=self._best_offers(search, found.rows_K)
        )

    @property
    def _catalogue(self) -> Catalogue:
        return self._fixed if self._offers is None else self._offers.value

    def _checked(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue, once everything that the configuration asks of it is there."""
        EligibilityRules.check(self._config.rules, catalogue)
        for name, playlist in self._config.playlists.items():
            catalogue.eligible(playlist.filters)
            catalogue.eligible([boost.when for boost in playlist.ordering.boosts])
            for named, kinds, part in playlist.ordering.columns():
                catalogue.require(named, kinds, f"playlists.{name}.ordering.{part}")
        for where, source in self._config.all_sources():
            _check_source(source, catalogue, where)
        if (offers := self._config.offers) is not None:
            for column, kind in ((offers.place_column, "place"), (offers.price_column, "numeric")):
                if column is not None:
                    catalogue.require(f"offer.{column}", (kind,), "offers")
        return catalogue

    def _known_rows(self, item_ids: Sequence[Id], where: str) -> Int64Array:
        """Rows of those that the catalogue has."""
        rows = self._item_ids.rows(
            [parsed(self._item_ids, item_id, f"{where}.{place}") for place, item_id in enumerate(item_ids)]
        )
        return rows[rows >= FIRST_ITEM_ROW]

    def _row(self, item_id: int | str) -> int:
        row = self._item_ids.row(self._item_ids.parse(item_id))
        if row == UNKNOWN_ROW:
            raise UserError(f"playlists: pinned item {item_id!r} is not in the catalogue")
        return row

    def _eligible(
        self, catalogue: Catalogue, filters: Sequence[Any], context: Context, request_time: RequestTime
    ) -> Eligible:
        rules = self._rules.conditions(context, request_time)
        offers = self._config.offers
        eligible = catalogue.eligible((*filters, *rules), with_offer=offers is not None and offers.required)
        eligible.rows_R[self._rules.blocked_B()] = False
        return eligible

    def _without(self, eligible: Eligible, seen_S: Int64Array) -> Mask | None:
        allowed_R = eligible.rows_R.copy()
        allowed_R[seen_S] = False
        return None if allowed_R[FIRST_ITEM_ROW:].all() else allowed_R

    def _found(self, sources: Sequence[SourceConfig], search: Search, k: int) -> tuple[Found, ...]:
        parts = (self._sources.find(source, search, source.candidates or k) for source in sources)
        return tuple(part for part in parts if part is not None)

    def _cold(self, playlist: Playlist, search: Search, wanted: int) -> tuple[Found, ...]:
        """What the rule for cold starts says; where the network failed that should have read a history, the playlist's own sources,
        with items like those of the history instead of personal ones."""
        sources = playlist.cold_sources or self._config.cold_start.sources
        if ENCODER_DOWN in search.query.degraded and len(search.query.history_L):
            listed = any(source.kind == "similar" for source in playlist.sources)
            likes = (
                source.model_copy(update={"kind": "similar"}) if source.kind == "personal" else source
                for source in playlist.sources
            )
            sources = tuple(
                like
                for like, source in zip(likes, playlist.sources, strict=True)
                if source.kind != "personal" or not listed
            )
        return self._found(sources, search, wanted)

    def _backfill(
        self, search: Search, k: int, rows_C: Int64Array, scores_C: Float32Array, found: tuple[Found, ...]
    ) -> tuple[Int64Array, Float32Array, tuple[Found, ...]]:
        """What is popular after what was found, where that is less than the k items that filters and rules would let pass."""
        if len(rows_C) >= k or len(rows_C) == np.count_nonzero(search.allowed):
            return rows_C, scores_C, found
        popular = self._sources.popular(search.allowed_R, k)
        new_K = ~np.isin(popular.rows_K, rows_C)
        rows_F, counts_F = popular.rows_K[new_K], popular.scores_K[new_K]
        query_D = search.query.query_D
        scores_F = counts_F if query_D is None else (self._vectors_RD[rows_F] @ query_D).astype(np.float32)
        fill = Found(POPULARITY, rows_F, counts_F)
        return (
            np.concatenate([rows_C, rows_F]),
            np.concatenate([scores_C, scores_F]),
            _together((*found, fill)),
        )

    def _by_query(self, found: Sequence[Found], query_D: Float32Array) -> tuple[Int64Array, Float32Array]:
        """Every row once, by inner product with the query."""
        if len(found) == 1 and found[0].source == PERSONAL:
            return found[0].rows_K, found[0].scores_K
        rows_C = np.unique(np.concatenate([part.rows_K for part in found] or [np.empty(0, dtype=np.int64)]))
        scores_C = (self._vectors_RD[rows_C] @ query_D).astype(np.float32)
        order = np.lexsort((rows_C, -scores_C))
        return rows_C[order], scores_C[order]

    def _with_pins(
        self,
        playlist: Playlist,
        search: Search,
        rows_C: Int64Array,
        scores_C: Float32Array,
        found: tuple[Found, ...],
    ) -> tuple[Int64Array, Float32Array, tuple[Found, ...]]:
        """Pinned items among the candidates, as far as filters and rules allow them; the ordering puts them in their places."""
        if not playlist.ordering.pins:
            return rows_C, scores_C, found
        allowed_R = (
            search.eligible.rows_R
            if playlist.ordering.keep_seen_pins or search.allowed_R is None
            else search.allowed_R
        )
        pinned = np.array(
            [row for pin in playlist.ordering.pins if allowed_R[row := self._pins[pin.item_id]]],
            dtype=np.int64,
        )
        new = pinned[~np.isin(pinned, rows_C)]
        query_D = search.query.query_D
        scores = (
            np.zeros(len(new), dtype=np.float32)
            if query_D is None
            else (self._vectors_RD[new] @ query_D).astype(np.float32)
        )
        pins = Found(PINNED, pinned, np.ones(len(pinned), dtype=np.float32))
        return np.concatenate([rows_C, new]), np.concatenate([scores_C, scores]), (*found, pins)

    def _best_offers(self, search: Search, rows_C: Int64Array) -> tuple[dict[str, Any] | None, ...] | None:
        offers, catalogue = self._config.offers, search.catalogue
        if offers is None or catalogue.offers is None:
            return None
        place, places = (
            search.context.place,
            None if offers.place_column is None else f"offer.{offers.place_column}",
        )

        def distances_km(units: Int64Array) -> Float64Array:
            assert place is not None and places is not None, "nowhere to start from"
            return catalogue.distances_km(places, (place.latitude, place.longitude), units)

        def prices(units: Int64Array) -> Float64Array:
            return catalogue.numbers(f"offer.{offers.price_column}")[units]

        near = [] if place is None or places is None else [distances_km]
        cheap = [] if offers.price_column is None else [prices]
        keys = [*near, *cheap] if offers.best_by == "nearest" else [*cheap, *near]
        units_C = catalogue.best_offers(rows_C, search.eligible, keys)
        found = (
            catalogue.offers.table.take(np.maximum(units_C, 0)).to_pylist()
            if catalogue.offers.table.num_rows
            else []
        )
        distances_C = distances_km(units_C) if near else np.full(len(units_C), np.nan)
        answers: list[dict[str, Any] | None] = [None] * len(rows_C)
        for at, unit in enumerate(units_C):
            if unit >= 0:
                values = {
                    name: value for name, value in found[at].items() if name not in (OFFER_ID, "item_id")
                }
                distance = None if np.isnan(distances_C[at]) else float(distances_C[at])
                answers[at] = {"offer_id": found[at][OFFER_ID], "distance_km": distance, "values": values}
        return tuple(answers)


EMPTY_QUERY = Query(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), None, 0, 0.0)


def _together(found: Sequence[Found]) -> tuple[Found, ...]:
    """Every source once, with what it found first before what it found later."""
    parts: dict[str, list[Found]] = {}
    for one in found:
        parts.setdefault(one.source, []).append(one)
    return tuple(
        Found(
            name, np.concatenate([one.rows_K for one in same]), np.concatenate([one.scores_K for one in same])
        )
        for name, same in parts.items()
    )


def interleave(found: Sequence[Found]) -> tuple[Int64Array, Float32Array]:
    """The first of each source, then the second of each, and so on; every row once, with the score of the source that came first."""
    if len(found) == 1:
        return found[0].rows_K, found[0].scores_K
    rows = np.concatenate([part.rows_K for part in found] or [np.empty(0, dtype=np.int64)])
    scores = np.concatenate([part.scores_K for part in found] or [np.empty(0, dtype=np.float32)])
    ranks = np.concatenate([np.arange(len(part.rows_K)) for part in found] or [np.empty(0, dtype=np.int64)])
    turns = np.argsort(ranks, kind="stable")
    _, first = np.unique(rows[turns], return_index=True)
    chosen = turns[np.sort(first)]
    return rows[chosen], scores[chosen]


def _check_source(source: SourceConfig, catalogue: Catalogue, where: str) -> None:
    if source.column is not None:
        kinds = ("timestamp",) if source.kind in ("new", "soon") else ("place",)
        catalogue.require(source.column, kinds, f"{where}: source {source.kind!r}")
        if source.kind in ("new", "soon"):
            catalogue.put_in_time(source.column, ahead=source.kind == "soon")
