"""The Ray Serve graph: every stage in one replica (`fused`), or a deployment for each stage (`staged`).

A hop between deployments costs some 3 ms, so stages are fused until they have to scale independently.
Only this file and `serving/remote.py` import `ray.serve`.
"""

import os
import sys
from typing import Literal

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from passerelle.errors import UserError
from serving.addresses import split_address
from serving.api.app import build_app
from serving.api.errors import StageError, location_of
from serving.api.listener import Listener
from serving.deadline import DeadlineError
from serving.dependencies import STAGE_BUILDERS, Dependencies, GraphSettings, StageName, local_stages
from serving.events.intake import EventIntake
from serving.observability.metrics import Telemetry
from serving.observability.served_log import ServedLog
from serving.observability.tracing import Tracer
from serving.recommender import Recommender
from serving.remote import remote_stages
from serving.retrievers.index_store import index_manifest
from serving.triton.inference import InferenceError

Topology = Literal["fused", "staged"]
SWITCH_INTERVAL_S = 5e-4
"""How long a search in a thread may keep the interpreter while the event loop waits for it.

Python's 5 ms are half of an answer, and an answer waits for the interpreter several times.
"""


class StageReplica:
    """A deployment's replica that runs one stage."""

    def __init__(self, name: StageName, settings: GraphSettings) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        dependencies = Dependencies(settings)
        # Opened for the warnings of this process.
        self._log = ServedLog(dependencies.config.log.file)
        self._stage = STAGE_BUILDERS[name](dependencies)

    async def call(
        self, method: str, *arguments: object, **options: object
    ) -> tuple[object, Exception | None]:
        """Calls a method of the stage and returns its result, or the exception that it raised.

        Serve would write a raised exception to its own log, with the ids in its message.
        """
        try:
            return await getattr(self._stage, method)(*arguments, **options), None
        except (UserError, InferenceError, DeadlineError) as error:
            return None, error
        # An unexpected exception: its message may hold ids.
        except Exception as error:
            return None, StageError(f"stage {type(self._stage).__name__}: {location_of(error)}")

    async def ready(self) -> bool:
        """Returns whether the stage is ready."""
        return await self._stage.ready()


@serve.ingress()
class Ingress:
    """The HTTP endpoint: runs the stages in this process, or calls the given deployments."""

    def __init__(self, settings: GraphSettings, *deployments: DeploymentHandle[StageReplica]) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        dependencies = Dependencies(settings)
        config = dependencies.config
        self._recommender = Recommender(
            dependencies.bundle,
            settings.version,
            remote_stages() if deployments else local_stages(dependencies),
            config=config,
            log=ServedLog(config.log.file),
            tracer=Tracer(config.tracing.endpoint),
        )
        self._index = index_manifest(dependencies.bundle)
        events = dependencies.events
        self._intake = None if events is None else EventIntake(dependencies.bundle, events)
        self._address = settings.listen
        self._listener: Listener | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve within the event loop that requests run in."""
        telemetry = Telemetry(str(os.getpid()))
        if self._index is not None:
            telemetry.index(self._index.retriever, self._index.recall)
        host = split_address(self._address)[0] if self._address else None
        app = build_app(self._recommender, self._intake, telemetry, host)
        self._listener = Listener(app, self._address) if self._address else None
        return app

    def check_health(self) -> None:
        """Called by Serve every few seconds; an exception makes it replace the replica."""
        if self._listener is not None:
            self._listener.require_running()


def build_graph(settings: GraphSettings, topology: Topology, replicas: int = 1) -> serve.Application:
    """Returns the application to pass to `serve.run`.

    Args:
        replicas: number of replicas of each deployment.
    """
    stages = (
        [_deployment(StageReplica, name, replicas).bind(name, settings) for name in STAGE_BUILDERS]
        if topology == "staged"
        else []
    )
    return _deployment(Ingress, "ingress", replicas).bind(settings, *stages)


def _deployment(replica: type, name: str, replicas: int) -> serve.Deployment:
    # A tenth of a core is what Ray reserves, not a limit: all stages must fit on a machine of one core.
    configure = serve.deployment(
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 0.1},
    )
    return configure(replica)
