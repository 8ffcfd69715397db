"""One request through the stages lookup, retrieval, ranking and ordering, in this process or in others."""

import asyncio
import logging
import time
import uuid

import numpy as np
from pydantic import BaseModel

from passerelle.arrays import Float32Array
from passerelle.bundle import RANKER, Bundle
from passerelle.errors import UserError
from passerelle.id_map import parsed
from serving.config import ServingConfig
from serving.deadline import Deadline, with_deadline
from serving.experiments import assigned
from serving.item_info import describe_history, describe_item, item_row
from serving.observability.served_log import ServedLog
from serving.observability.tracing import Tracer
from serving.schemas.base import IDS_AS_TEXT, MAX_SAFE_INTEGER, ExternalId
from serving.schemas.recommend import (
    HistoryResponse,
    ItemResponse,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
    SimilarResponse,
    Timings,
)
from serving.stages.types import RANKER_DOWN, Candidates, Query, RequestTime, Stages
from serving.triton.inference import InferenceError

SIMILAR_K = 10
RANKER_SHARE = 0.8
"""Share of the remaining time for the ranker: one that hangs leaves time for the ordering."""

logger = logging.getLogger(__name__)


class Recommender:
    """Answers requests with the four stages.

    Args:
        bundle: ids and metadata of the items.
        version: version of the model repository that serves this bundle.
        stages: local stages or proxies of remote ones.
        config: playlists, experiments and limits.
        log: records every answer.
        tracer: makes a span for each stage.
    """

    def __init__(
        self,
        bundle: Bundle,
        version: int,
        stages: Stages,
        *,
        config: ServingConfig | None = None,
        log: ServedLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.version = version
        self.config = config or ServingConfig()
        self.bundle = bundle
        self.stages = stages
        self._ids_as_text = any(ids.exceeds(MAX_SAFE_INTEGER) for ids in (bundle.item_ids, bundle.user_ids))
        self._log = log or ServedLog(None)
        self.tracer = tracer or Tracer(None)

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Returns the items for a user or a history.

        Raises:
            UserError: `k` is too large, an id is of the wrong type, a filter does not fit, or the playlist
                does not exist.
            ConflictError: lists of the history have different lengths, or the playlist has no such variant.
            DeadlineError: the deadline passes before there are candidates.
        """
        started = time.perf_counter()
        request.require_one_value_an_item()
        deadline = self._deadline(request.deadline_ms)
        request_time = RequestTime.read(request.context.timestamp_ms)
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
        with self.tracer.stage("lookup"):
            lookup = self.stages.lookup.run(request, request_time, deadline.left_s())
            query = await with_deadline(lookup, deadline)
        looked_up = time.perf_counter()
        with self.tracer.stage("retrieval"):
            retrieval = self.stages.retrieval.run(request, query, request_time, playlist, deadline.left_s())
            candidates = await with_deadline(retrieval, deadline)
        retrieved = time.perf_counter()
        with self.tracer.stage("ranking"):
            scores_C, degraded = await self._ranked(query, candidates, request_time, deadline)
        ranked = time.perf_counter()
        with self.tracer.stage("ordering"):
            ordering = self.stages.ordering.run(
                candidates, scores_C, k, request_time, assignment.playlist, debug=request.debug
            )
            items = await with_deadline(ordering, deadline)
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
        self._log.served(answer, query.pseudonym, request.context.place)
        self.tracer.note(
            request_id=answer.request_id,
            playlist=assignment.playlist,
            fallback=answer.fallback or "",
            degraded=",".join(degraded),
        )
        return answer

    async def _ranked(
        self, query: Query, candidates: Candidates, request_time: RequestTime, deadline: Deadline
    ) -> tuple[Float32Array, tuple[str, ...]]:
        """Returns scores, and the components that failed so far.

        Where the ranker does not answer in time, the scores are those of retrieval.
        """
        if query.query_D is None or candidates.fallback is not None:
            scores_C = _falling(len(candidates.rows_C)) if candidates.mixed else candidates.scores_C
            return scores_C, query.degraded
        timeout_s = RANKER_SHARE * deadline.left_s()
        try:
            if timeout_s <= 0:
                raise InferenceError(RANKER, "DEADLINE_EXCEEDED", "no time is left")
            scores_C = await asyncio.wait_for(
                self.stages.ranking.run(query, candidates, request_time, timeout_s), timeout_s
            )
            if not np.isfinite(scores_C).all():
                raise InferenceError(RANKER, "INTERNAL", "scores that are not finite")
        except (InferenceError, TimeoutError) as error:
            logger.warning("answering without the ranker: %s", str(error) or "it took too long")
            return candidates.scores_C, (*query.degraded, RANKER_DOWN)
        return scores_C, query.degraded

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """Returns the items nearest to one item or to several together, without these.

        Raises:
            UnknownItemError: an item is not in the catalogue.
            UserError: `k` is too large, or a filter does not fit.
            DeadlineError: the deadline passes.
        """
        k = (
            min(SIMILAR_K, self.config.limits.max_k, self.bundle.manifest.num_items)
            if request.k is None
            else self._checked_k(request.k)
        )
        item_ids = request.item_ids if request.item_id is None else (request.item_id,)
        rows = [item_row(self.bundle, item_id) for item_id in item_ids]
        deadline = self._deadline(request.deadline_ms)
        request_time = RequestTime.read(request.context.timestamp_ms)
        retrieval = self.stages.retrieval.similar(request, rows, k, request_time, deadline.left_s())
        candidates = await with_deadline(retrieval, deadline)
        ordering = self.stages.ordering.run(candidates, candidates.scores_C, k, request_time)
        items = await with_deadline(ordering, deadline)
        return SimilarResponse(request_id=uuid.uuid4().hex, model_version=self.version, items=items)

    def item(self, item_id: ExternalId) -> ItemResponse:
        """Returns the catalogue's description of an item.

        Raises:
            UnknownItemError: the item is not in the catalogue.
        """
        return describe_item(self.bundle, item_id)

    async def history(self, user_id: ExternalId, limit: int = 50) -> HistoryResponse:
        """Returns the known events of a user, the newest first.

        Raises:
            UserError: the id is not of the type of this bundle's users.
            DeadlineError: the service's own deadline passes.
        """
        found = await with_deadline(self.stages.lookup.history(user_id, limit), self._deadline(None))
        return describe_history(self.bundle, found)

    def answer_json(self, answer: BaseModel) -> str:
        """Returns an answer as JSON; its ids are text if one of the catalogue does not fit a number there."""
        return answer.model_dump_json(context={IDS_AS_TEXT: self._ids_as_text})

    async def ready(self) -> bool:
        """Returns whether every stage is ready: Triton serves both networks, and remote stages answer."""
        return all(await asyncio.gather(*(stage.ready() for stage in self.stages.all())))

    def _deadline(self, deadline_ms: float | None) -> Deadline:
        return Deadline(deadline_ms or self.config.limits.deadline_ms)

    def _checked_k(self, k: int) -> int:
        max_k, num_items = self.config.limits.max_k, self.bundle.manifest.num_items
        if k > max_k:
            raise UserError(
                f"k: {k} is more than the {max_k} items that this service gives at a time (limits.max_k)"
            )
        if k > num_items:
            raise UserError(f"k: {k} is more than the {num_items} items of the catalogue")
        return k


def _falling(count: int) -> Float32Array:
    """Returns descending scores for interleaved items, as scores of different sources cannot be compared."""
    return np.arange(count, 0, -1, dtype=np.float32)
