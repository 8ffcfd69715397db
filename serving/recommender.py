"""One request through the stages: lookup -> retrieval -> ranking -> ordering. The stages may live here or in other processes."""

import asyncio
import time
import uuid
from typing import Any, Protocol

import numpy as np

from passerelle.bundle import QUERY_ENCODER, RANKER, Bundle
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID
from serving.schemas import ExternalId, Item, ItemResponse, RecommendRequest, RecommendResponse, SimilarRequest, SimilarResponse, Timings
from serving.stages import POPULARITY, Candidates, Float32Array, Inference, Query


class UnknownItemError(UserError):
    """An item id that is not in the catalogue: HTTP 404."""


class LookupStage(Protocol):
    """From a request to what is known of its user."""

    async def run(self, request: RecommendRequest, timestamp_ms: int) -> Query: ...


class RetrievalStage(Protocol):
    """From a user to candidates, and from an item row to similar items."""

    async def run(self, request: RecommendRequest, query: Query) -> Candidates: ...

    async def similar(self, row: int, k: int) -> Candidates: ...


class RankingStage(Protocol):
    """From candidates to one score for each."""

    async def run(self, query: Query, candidates: Candidates, timestamp_ms: int) -> Float32Array: ...


class OrderingStage(Protocol):
    """From scored candidates to the items of the answer."""

    async def run(self, candidates: Candidates, scores_C: Float32Array, k: int) -> tuple[Item, ...]: ...


class Recommender:
    """The stages as one.

    Args:
        bundle: ids and metadata of the items.
        version: version of the model repository that serves this bundle.
        inference: asked only whether the networks are ready.
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
    ) -> None:
        self.version = version
        self._bundle = bundle
        self._inference = inference
        self._lookup = lookup
        self._retrieval = retrieval
        self._ranking = ranking
        self._ordering = ordering

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Answer one request.

        Raises:
            UserError: more items are asked for than there are, an id is of the wrong type, or a filter does not fit.
            TritonError: the networks do not answer.
        """
        self._check_k(request.k)
        timestamp_ms = request.timestamp_ms()
        started = time.perf_counter()
        query = await self._lookup.run(request, timestamp_ms)
        looked_up = time.perf_counter()
        candidates = await self._retrieval.run(request, query)
        retrieved = time.perf_counter()
        scores_C = candidates.scores_C
        if query.query_D is not None:
            scores_C = await self._ranking.run(query, candidates, timestamp_ms)
        ranked = time.perf_counter()
        items = await self._ordering.run(candidates, scores_C, request.k)
        timings = Timings(
            lookup=1e3 * (looked_up - started) - query.encode_ms,
            encode=query.encode_ms,
            retrieval=1e3 * (retrieved - looked_up),
            ranking=1e3 * (ranked - retrieved),
            total=1e3 * (time.perf_counter() - started),
        )
        return RecommendResponse(
            request_id=uuid.uuid4().hex,
            model_version=self.version,
            items=items,
            fallback=POPULARITY if query.query_D is None else None,
            ignored_history=query.ignored_history,
            timings_ms=timings,
        )

    async def similar(self, request: SimilarRequest) -> SimilarResponse:
        """The items nearest to one item, without itself.

        Raises:
            UnknownItemError: it is not in the catalogue.
            UserError: more items are asked for than there are.
        """
        self._check_k(request.k)
        candidates = await self._retrieval.similar(self._row(request.item_id), request.k)
        items = await self._ordering.run(candidates, candidates.scores_C, request.k)
        return SimilarResponse(request_id=uuid.uuid4().hex, model_version=self.version, items=items)

    def item(self, item_id: ExternalId) -> ItemResponse:
        """What the catalogue says of one item, but for vectors; missing and non-finite values are None.

        Raises:
            UnknownItemError: it is not in the catalogue.
        """
        row: dict[str, Any] = self._bundle.items.slice(self._row(item_id) - FIRST_ITEM_ROW, 1).to_pylist()[0]
        manifest = self._bundle.manifest
        return ItemResponse(
            item_id=row[ITEM_ID],
            title=None if manifest.title is None else row[manifest.title],
            features={feature.name: _plain(row[feature.name]) for feature in manifest.item_features if feature.kind != "vector"},
        )

    async def ready(self) -> bool:
        """Whether Triton serves both networks of this version."""
        networks = await asyncio.gather(*(self._inference.ready(model, self.version) for model in (QUERY_ENCODER, RANKER)))
        return all(networks)

    def _check_k(self, k: int) -> None:
        if k > self._bundle.manifest.num_items:
            raise UserError(f"k: {k} is more than the {self._bundle.manifest.num_items} items of the catalogue")

    def _row(self, item_id: ExternalId) -> int:
        try:
            row = self._bundle.item_ids.row(self._bundle.item_ids.parse(item_id))
        except UserError as error:
            raise UnknownItemError(str(error)) from None
        if row == UNKNOWN_ROW:
            raise UnknownItemError(f"item_id {item_id!r}: not in the catalogue of {self._bundle.manifest.num_items} items")
        return row


def _plain(value: Any) -> Any:
    """A value of an Arrow table as JSON can hold it."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
