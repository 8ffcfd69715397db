"""One request through the stages: lookup -> retrieval -> ranking -> ordering. The stages may live here or in other processes."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa

from passerelle.arrays import Float32Array
from passerelle.bundle import QUERY_ENCODER, RANKER, Bundle, History
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, parsed
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID
from serving.config import Playlist, ServingConfig
from serving.experiments import assigned
from serving.observability.served_log import ServedLog
from serving.observability.tracing import Tracer
from serving.schemas.recommend import (
    ExternalId,
    HistoryEvent,
    HistoryResponse,
    Item,
    ItemResponse,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
    SimilarResponse,
    Timings,
)
from serving.stages.types import RANKER_DOWN, Candidates, Inference, InferenceError, Query

T = TypeVar("T")
SIMILAR_K = 10
RANKER_SHARE = 0.8
"""Of the time that is left: what comes after a ranker that hangs needs some, too."""

logger = logging.getLogger(__name__)


class UnknownItemError(UserError):
    """An item id that is not in the catalogue: HTTP 404."""


class DeadlineError(Exception):
    """The time of a request is over before there is anything to answer: HTTP 503."""


class LookupStage(Protocol):
    """From a request to what is known of its user."""

    async def run(self, request: RecommendRequest, timestamp_ms: int, timeout_s: float) -> Query: ...

    async def history(self, user_id: ExternalId, limit: int) -> History: ...


class RetrievalStage(Protocol):
    """From a user to candidates, and from item rows to similar items."""

    async def run(self, request: RecommendRequest, query: Query, playlist: Playlist) -> Candidates: ...

    async def similar(self, request: SimilarRequest, rows: Sequence[int], k: int) -> Candidates: ...


class RankingStage(Protocol):
    """From candidates to one score for each."""

    async def run(
        self, query: Query, candidates: Candidates, timestamp_ms: int, timeout_s: float
    ) -> Float32Array: ...


class OrderingStage(Protocol):
    """From scored candidates to the items of the answer."""

    async def run(
        self,
        candidates: Candidates,
        scores_C: Float32Array,
        k: int,
        playlist: str | None = None,
        *,
        debug: bool = False,
    ) -> tuple[Item, ...]: ...


@runtime_checkable
class Remote(Protocol):
    """A stage that lives in another process."""

    async def ready(self) -> bool: ...


class Recommender:
    """The stages as one.

    Args:
        bundle: ids and metadata of the items.
        version: version of the model repository that serves this bundle.
        inference: asked only whether the networks are ready.
        config: playlists and experiments.
        log: told of every answer.
        tracer: told of every stage.
    """

    def __init__(
        self,
        bundle: Bundle,
        version: int,
        inference: Inference,
        lookup: LookupStage,
        retrieval: RetrievalStage,
        ranking: RankingStage,
        ordering: OrderingStage,
        *,
        config: ServingConfig | None = None,
        log: ServedLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.version = version
        self.config = config or ServingConfig()
        self.bundle = bundle
        self._inference = inference
        self._lookup = lookup
        self._retrieval = retrieval
        self._ranking = ranking
        self._ordering = ordering
        self._log = log or ServedLog(None)
        self.tracer = tracer or Tracer(None)
        self._are_there = [
            stage.ready for stage in (lookup, retrieval, ranking, ordering) if isinstance(stage, Remote)
        ]

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Answer one request.

        Raises:
            UserError: more items are asked for than there are, an id is of the wrong type, a filter does not fit, or there is no such
                playlist or variant.
            DeadlineError: the time is over before there are candidates.
        """
        started = time.perf_counter()
        until = self._until(request.deadline_ms)
        user_id = (
            None if request.user_id is None else str(parsed(self.bundle.user_ids, request.user_id, "user_id"))
        )
        assignment = assigned(self.config, request, user_id)
        playlist = self.config.playlist(assignment.playlist)
        k = (
            self._checked_k(request.k)
            if request.k is not None
            else min(playlist.size, self.bundle.manifest.num_items)
        )
        timestamp_ms = request.timestamp_ms()
        with self.tracer.stage("lookup"):
            query = await with_deadline(self._lookup.run(request, timestamp_ms, _left_s(until)), until)
        looked_up = time.perf_counter()
        with self.tracer.stage("retrieval"):
            candidates = await with_deadline(self._retrieval.run(request, query, playlist), until)
        retrieved = time.perf_counter()
        with self.tracer.stage("ranking"):
            scores_C, degraded = await self._ranked(
                query, candidates, timestamp_ms, RANKER_SHARE * (until - retrieved)
            )
        ranked = time.perf_counter()
        with self.tracer.stage("ordering"):
            items = await with_deadline(
                self._ordering.run(candidates, scores_C, k, assignment.playlist, debug=request.debug), until
            )
        ordered = time.perf_counter()
        timings = Timings(
            lookup=1e3 * (looked_up - started) - query.encode_ms,
            encode=query.encode_ms,
            retrieval=1e3 * (retrieved - looked_up),
            ranking=1e3 * (ranked - retrieved),
            ordering=1e3 * (ordered - ranked),
            total=1e3 * (ordered - started),
        )
        answer = RecommendResponse(
            request_id=uuid.uuid4().hex,
            model_version=self.version,
            items=items,
            fallback=candidates.fallback,
            degraded=degraded,
            playlist=assignment.playlist,
            experiment=assignment.experiment,
            variant=assignment.variant,
            ignored_history=query.ignored_history,
            timings_ms=timings,
        )
        self._log.served(answer, query.identity, request.context.place)
        self.tracer.note(
            request_id=answer.request_id,
            playlist=assignment.playlist,
            fallback=answer.fallback or "",
            degraded=",".join(degraded),
        )
        return answer

    async def _ranked(
        self, query: Query, candidates: Candidates, timestamp_ms: int, left_s: float
    ) -> tuple[Float32Array, tuple[str, ...]]:
        """Scores of the ranker; where it does not answer in time those of retrieval, and that it was so."""
        if query.query_D is None or candidates.fallback is not None:
            return _falling(
                len(candidates.rows_C)
            ) if candidates.mixed else candidates.scores_C, query.degraded
        try:
            if left_s <= 0:
                raise InferenceError(RANKER, "DEADLINE_EXCEEDED", "no time is left")
            scores_C = await asyncio.wait_for(
                self._ranking.run(query, candidates, timestamp_ms, left_s), left_s
            )
            if not np.isfinite(scores_C).all():
                raise InferenceError(RANKER, "INTERNAL", "scores that are no numbers")
        except (InferenceError, TimeoutError) as error:
            logger.warning("without the ranker: %s", str(error) or "it took too long")
            return candidates.scores_C, (*query.degraded, RANKER_DOWN)
        return scores_C, query.degraded

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """The items nearest to one item or to several together, without these.

        Raises:
            UnknownItemError: one is not in the catalogue.
            UserError: more items are asked for than there are, or a filter does not fit.
            DeadlineError: the time is over.
        """
        k = (
            min(SIMILAR_K, self.config.limits.max_k, self.bundle.manifest.num_items)
            if request.k is None
            else self._checked_k(request.k)
        )
        rows = [
            self._row(item_id)
            for item_id in ((request.item_id,) if request.item_id is not None else request.item_ids)
        ]
        until = self._until(request.deadline_ms)
        candidates = await with_deadline(self._retrieval.similar(request, rows, k), until)
        items = await with_deadline(self._ordering.run(candidates, candidates.scores_C, k), until)
        return SimilarResponse(request_id=uuid.uuid4().hex, model_version=self.version, items=items)

    def item(self, item_id: ExternalId) -> ItemResponse:
        """What the catalogue says of one item, but for vectors; missing and non-finite values are None.

        Raises:
            UnknownItemError: it is not in the catalogue.
        """
        row: dict[str, Any] = self.bundle.items.slice(self._row(item_id) - FIRST_ITEM_ROW, 1).to_pylist()[0]
        manifest = self.bundle.manifest
        return ItemResponse(
            item_id=row[ITEM_ID],
            title=None if manifest.title is None else row[manifest.title],
            features={
                feature.name: _plain(row[feature.name])
                for feature in manifest.item_features
                if feature.kind != "vector"
            },
        )

    async def history(self, user_id: ExternalId, limit: int = 50) -> HistoryResponse:
        """What is known of a user, the newest first.

        Raises:
            UserError: the id is not of the type of this bundle's users.
        """
        found = await with_deadline(self._lookup.history(user_id, limit), self._until(None))
        names, title = self.bundle.manifest.event_types, self.bundle.manifest.title
        items = self.bundle.items.take(pa.array(found.item_rows_L - FIRST_ITEM_ROW))
        titles = [None] * len(items) if title is None else items.column(title).to_pylist()
        ids, kinds, times_ms = (
            self.bundle.item_ids.ids(found.item_rows_L),
            found.event_types_L.tolist(),
            found.timestamps_ms_L.tolist(),
        )
        events = [
            HistoryEvent(item_id=item_id, title=text, event_type=names[kind], timestamp_ms=at_ms)
            for item_id, text, kind, at_ms in zip(ids, titles, kinds, times_ms, strict=True)
        ]
        return HistoryResponse(events=tuple(reversed(events)))

    async def ready(self) -> bool:
        """Whether Triton serves both networks of this version, and every stage that lives elsewhere answers."""
        networks = [self._inference.ready(model, self.version) for model in (QUERY_ENCODER, RANKER)]
        return all(await asyncio.gather(*networks, *(ready() for ready in self._are_there)))

    def _until(self, deadline_ms: float | None) -> float:
        """When a request that comes now has to be answered, by `time.perf_counter`."""
        return time.perf_counter() + (deadline_ms or self.config.limits.deadline_ms) / 1e3

    def _checked_k(self, k: int) -> int:
        if k > self.config.limits.max_k:
            raise UserError(
                f"k: {k} is more than the {self.config.limits.max_k} items that this service gives at a time (limits.max_k)"
            )
        if k > self.bundle.manifest.num_items:
            raise UserError(
                f"k: {k} is more than the {self.bundle.manifest.num_items} items of the catalogue"
            )
        return k

    def _row(self, item_id: ExternalId) -> int:
        try:
            row = self.bundle.item_ids.row(self.bundle.item_ids.parse(item_id))
        except UserError as error:
            raise UnknownItemError(str(error)) from None
        if row == UNKNOWN_ROW:
            raise UnknownItemError(
                f"item_id {item_id!r}: not in the catalogue of {self.bundle.manifest.num_items} items"
            )
        return row


def _left_s(until: float) -> float:
    """Seconds to a moment of `time.perf_counter`."""
    return max(0.0, until - time.perf_counter())


async def with_deadline(stage: Awaitable[T], until: float) -> T:
    """What a stage answers, in time.

    Raises:
        DeadlineError: it does not.
    """
    try:
        return await asyncio.wait_for(stage, max(1e-4, _left_s(until)))
    except TimeoutError:
        raise DeadlineError(
            "the time of the request is over: ask again, or give a longer deadline_ms"
        ) from None


def _falling(count: int) -> Float32Array:
    """Scores of items that came in turns from several sources, whose own scores cannot be compared."""
    return np.arange(count, 0, -1, dtype=np.float32)


def _plain(value: Any) -> Any:
    """A value of an Arrow table as JSON can hold it."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
