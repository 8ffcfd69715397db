"""Proxies of stages that run in other deployments of the Ray Serve graph."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from passerelle.arrays import Float32Array
from passerelle.bundle import History
from serving.config import Playlist
from serving.dependencies import StageName
from serving.schemas.base import ExternalId
from serving.schemas.recommend import Item, RecommendRequest, SimilarRequest
from serving.stages.types import (
    Candidates,
    LookupStage,
    OrderingStage,
    Query,
    RankingStage,
    RequestTime,
    RetrievalStage,
    Stages,
)
from serving.triton.inference import InferenceError

READY_TIMEOUT_S = 1.0
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class RemoteStage:
    """A stage in another deployment.

    Args:
        name: of the deployment.
    """

    def __init__(self, name: StageName) -> None:
        self._name = name
        # Made by the process that calls: its settings decide how the handle calls.
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(
            name, serve.get_replica_context().app_name
        )

    async def ready(self) -> bool:
        """Returns whether a replica answers that it is ready."""
        try:
            return bool(await asyncio.wait_for(self._handle.ready.remote(), READY_TIMEOUT_S))
        except (RayError, RayServeException, TimeoutError):
            return False

    async def _call(
        self, method: Callable[Concatenate[S, P], Awaitable[T]], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Calls a method of the stage.

        Raises:
            UserError: of the stage.
            InferenceError: of the stage, or no replica answers.
            StageError: an unexpected error in the stage.
        """
        answer: tuple[T, Exception | None]
        try:
            answer = await self._handle.call.remote(method.__name__, *arguments, **options)
        except (RayError, RayServeException) as failure:
            raise InferenceError(f"stage {self._name}", "UNAVAILABLE", type(failure).__name__) from None
        result, error = answer
        if error is not None:
            raise error
        return result


class RemoteLookup(RemoteStage):
    """The lookup stage in another deployment."""

    async def run(self, request: RecommendRequest, request_time: RequestTime, timeout_s: float) -> Query:
        return await self._call(LookupStage.run, request, request_time, timeout_s)

    async def history(self, user_id: ExternalId, limit: int) -> History:
        return await self._call(LookupStage.history, user_id, limit)


class RemoteRetrieval(RemoteStage):
    """The retrieval stage in another deployment."""

    num_abandoned = 0

    async def run(
        self,
        request: RecommendRequest,
        query: Query,
        request_time: RequestTime,
        playlist: Playlist,
        timeout_s: float,
    ) -> Candidates:
        return await self._call(RetrievalStage.run, request, query, request_time, playlist, timeout_s)

    async def similar(
        self,
        request: SimilarRequest,
        rows: Sequence[int],
        k: int,
        request_time: RequestTime,
        timeout_s: float,
    ) -> Candidates:
        return await self._call(RetrievalStage.similar, request, rows, k, request_time, timeout_s)


class RemoteRanking(RemoteStage):
    """The ranking stage in another deployment."""

    async def run(
        self, query: Query, candidates: Candidates, request_time: RequestTime, timeout_s: float
    ) -> Float32Array:
        return await self._call(RankingStage.run, query, candidates, request_time, timeout_s)


class RemoteOrdering(RemoteStage):
    """The ordering stage in another deployment."""

    async def run(
        self,
        candidates: Candidates,
        scores_C: Float32Array,
        k: int,
        request_time: RequestTime,
        playlist: str | None = None,
        *,
        debug: bool = False,
    ) -> tuple[Item, ...]:
        return await self._call(
            OrderingStage.run, candidates, scores_C, k, request_time, playlist, debug=debug
        )


def remote_stages() -> Stages:
    """Returns proxies of all stages; to be called in a replica of the graph."""
    return Stages(
        lookup=RemoteLookup("lookup"),
        retrieval=RemoteRetrieval("retrieval"),
        ranking=RemoteRanking("ranking"),
        ordering=RemoteOrdering("ordering"),
    )
