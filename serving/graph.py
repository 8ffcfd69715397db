"""The Ray Serve graph: every stage in one replica (`fused`), or a deployment a stage (`staged`). The only file that knows `ray.serve`.

A hop between deployments costs some 3 ms, so stages are fused until they have to scale apart.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from passerelle.bundle import open_bundle
from passerelle.config import Config
from passerelle.errors import UserError
from serving.api.app import build_app
from serving.api.errors import StageBrokenError, place_of
from serving.api.listener import Listener
from serving.catalogue.catalogue import item_columns
from serving.catalogue.columns import Columns
from serving.config import ServingConfig
from serving.events.base import EventStore
from serving.events.intake import EventIntake, open_store
from serving.observability.metrics import Telemetry
from serving.observability.served_log import ServedLog
from serving.observability.tracing import Tracer
from serving.recommender import Recommender
from serving.retrievers.index_store import index_of
from serving.retrievers.retriever import SCAN_LIMIT
from serving.stages.lookup import EmbeddingLookup
from serving.stages.ordering import Ordering
from serving.stages.ranking import Ranking
from serving.stages.retrieval import Retrieval
from serving.stages.types import InferenceError
from serving.triton.client import TritonClient
from serving.triton.resilience import ResilientInference

READY_TIMEOUT_S = 1.0
Topology = Literal["fused", "staged"]


class GraphSettings(Config):
    """What every replica needs to build its stages."""

    bundle: Path
    """A bundle that every node can read."""
    version: int
    """Its version in the model repository."""
    triton: str
    """HOST:PORT of Triton's gRPC service."""
    listen: str | None = None
    """HOST:PORT that ingress replicas listen on themselves; without it, requests come through Serve's proxies alone."""
    serving: ServingConfig = ServingConfig()
    """Playlists, rules, limits."""
    exact: bool = False
    """Search everything, whatever index there is: to compare with training, which does."""


class Dependencies:
    """What stages are made of, in one replica."""

    def __init__(self, settings: GraphSettings) -> None:
        self.settings = settings
        self.config = settings.serving
        self.bundle = open_bundle(settings.bundle, verify=False)
        self.inference = ResilientInference(TritonClient(settings.triton))

    @cached_property
    def items(self) -> Columns:
        """The columns of items, once for all stages of this process."""
        return item_columns(self.bundle)

    @cached_property
    def events(self) -> EventStore | None:
        """Opened once: the lookup reads what the intake writes."""
        return open_store(self.config.events)


_STAGES: dict[str, Callable[[Dependencies], Any]] = {
    "lookup": lambda parts: EmbeddingLookup(
        parts.bundle, parts.inference, parts.settings.version, parts.config, parts.events
    ),
    "retrieval": lambda parts: Retrieval(
        parts.bundle,
        parts.config,
        parts.events,
        parts.items,
        scan_limit=sys.maxsize if parts.settings.exact else SCAN_LIMIT,
    ),
    "ranking": lambda parts: Ranking(parts.bundle, parts.inference, parts.settings.version),
    "ordering": lambda parts: Ordering(parts.bundle, parts.config, parts.items),
}
"""How each stage is made, in the order of the chain."""


class StageReplica:
    """One stage alone in a deployment."""

    def __init__(self, name: str, settings: GraphSettings) -> None:
        parts = Dependencies(settings)
        self._log = ServedLog(parts.config.log.file)  # for the warnings of this process
        self._stage = _STAGES[name](parts)

    async def call(self, method: str, *arguments: Any, **options: Any) -> tuple[Any, Exception | None]:
        """Call a method of the stage: what it gives, or what was wrong. Serve would write an exception to its log, with the ids in it."""
        try:
            return await getattr(self._stage, method)(*arguments, **options), None
        except (UserError, InferenceError) as error:
            return None, error
        except Exception as error:  # ours; what it says may hold ids
            return None, StageBrokenError(f"stage {type(self._stage).__name__}: {place_of(error)}")

    async def ready(self) -> bool:
        """It is."""
        return True


class RemoteStage:
    """A stage that lives in another deployment, with the methods of the stage itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Made here and not by the driver: how it calls is decided by the settings of the process that makes it.
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(
            name, serve.get_replica_context().app_name
        )

    async def run(self, *arguments: Any, **options: Any) -> Any:
        return await self._call("run", *arguments, **options)

    async def similar(self, *arguments: Any) -> Any:
        return await self._call("similar", *arguments)

    async def history(self, *arguments: Any) -> Any:
        return await self._call("history", *arguments)

    async def ready(self) -> bool:
        """Whether one of its replicas answers."""
        try:
            return bool(await asyncio.wait_for(self._handle.ready.remote(), READY_TIMEOUT_S))
        except (RayError, RayServeException, TimeoutError):
            return False

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            answer, error = await self._handle.call.remote(method, *arguments, **options)
        except (RayError, RayServeException) as failure:  # its replica died, or there is none
            raise InferenceError(f"stage {self._name}", "UNAVAILABLE", type(failure).__name__) from None
        if error is not None:
            raise error
        return answer


@serve.ingress()
class Ingress:
    """The HTTP endpoint: builds the stages here, or speaks to those given."""

    def __init__(self, settings: GraphSettings, *stages: DeploymentHandle[Any]) -> None:
        parts = Dependencies(settings)
        chain: Any = list(map(RemoteStage, _STAGES)) if stages else [make(parts) for make in _STAGES.values()]
        told: Any = {"log": ServedLog(parts.config.log.file), "tracer": Tracer(parts.config.tracing.endpoint)}
        self._recommender = Recommender(
            parts.bundle, settings.version, parts.inference, *chain, config=parts.config, **told
        )
        self._index = index_of(parts.bundle)
        self._intake = None if parts.events is None else EventIntake(parts.bundle, parts.events)
        self._address = settings.listen
        self._listener: Listener | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve within the event loop that requests run in."""
        telemetry = Telemetry(str(os.getpid()))
        if self._index is not None:
            telemetry.index(self._index.retriever, self._index.recall)
        app = build_app(self._recommender, self._intake, telemetry)
        self._listener = Listener(app, self._address) if self._address else None
        return app

    def check_health(self) -> None:
        """Asked by Serve every few seconds; an exception makes it replace the replica."""
        if self._listener is not None:
            self._listener.require_running()


def build_graph(settings: GraphSettings, topology: Topology, replicas: int = 1) -> serve.Application:
    """The application to pass to `serve.run`.

    Args:
        replicas: of each deployment.
    """
    stages = (
        [_deployment(StageReplica, name, replicas).bind(name, settings) for name in _STAGES]
        if topology == "staged"
        else []
    )
    return _deployment(Ingress, "ingress", replicas).bind(settings, *stages)


def _deployment(replica: type, name: str, replicas: int) -> serve.Deployment:
    # A tenth of a core is what Ray reserves, not a limit: all stages must fit on a machine of one core.
    options: Any = {
        "name": name,
        "num_replicas": replicas,
        "max_ongoing_requests": 256,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    deployment: Any = serve.deployment(replica)
    configured: serve.Deployment = deployment.options(**options)
    return configured
