"""The running service as a context manager: Triton and the Ray Serve graph, from start to stop.

with Service(Path("artifacts/bundle"), Path("model_repository"), version=3, port=8000) as service:
    httpx.post(f"{service.url}/v1/recommend", json={"user_id": 1})
"""

import contextlib
import logging
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import LoggingConfig

from passerelle.errors import UserError
from ray_cluster.local_ray import local_ray, users_mistake
from ray_cluster.networks import Networks
from serving.config import ServingConfig
from serving.dependencies import GraphSettings
from serving.graph import Topology, build_graph
from serving.triton.ports import free_ports, require_free

APPLICATION = "passerelle"
EVENTS_NAME = "events.sqlite"
READY_TIMEOUT_S = 60.0
WATCH_S, LOOK_INTERVAL_S, LONGEST_PAUSE_S = 1.0, 5.0, 10.0

logger = logging.getLogger(__name__)


class Service:
    """One version of a bundle, served over HTTP from this machine until the block ends; also when starting fails half way.

    Args:
        bundle: an intact bundle.
        repository: the model repository that holds its networks.
        version: their version there.
        topology: every stage in one replica (`fused`), or a deployment a stage (`staged`).
        host: address to listen on.
        port: HTTP port; a free one when absent.
        triton: `HOST:PORT` of a running server over the same repository; one is started here when absent.
        replicas: processes that answer, of each deployment; they share the address, and the files of the bundle in memory.
        exact: search everything, whatever index there is.
        serving: playlists, rules, limits; events go into the repository's folder where it names no other file.
    """

    def __init__(
        self,
        bundle: Path,
        repository: Path,
        version: int,
        *,
        topology: Topology = "fused",
        host: str = "127.0.0.1",
        port: int | None = None,
        triton: str | None = None,
        replicas: int = 1,
        serving: ServingConfig | None = None,
        exact: bool = False,
    ) -> None:
        self._replicas = replicas
        self._topology: Topology = topology
        self._host = host
        self._given_port = port
        self._port = port or free_ports(1)[0]
        self._networks = Networks(repository, version, triton)
        self.repository = repository.resolve()
        serving = serving or ServingConfig()
        events = serving.events.model_copy(
            update={"file": serving.events.file or self.repository / EVENTS_NAME}
        )
        self._settings = GraphSettings(
            bundle=bundle.resolve(),
            version=version,
            triton=self._networks.address,
            listen=f"{self._host}:{self._port}",
            serving=serving.model_copy(update={"events": events}),
            exact=exact,
        )
        self._cleanup = contextlib.ExitStack()
        self._closed = threading.Event()
        self._ensuring = threading.Lock()

    @property
    def url(self) -> str:
        """Where the HTTP interface answers."""
        return f"http://{'127.0.0.1' if self._host == '0.0.0.0' else self._host}:{self._port}"

    @property
    def triton(self) -> str:
        """`HOST:PORT` of Triton's gRPC service."""
        return self._networks.address

    def __enter__(self) -> Self:
        """Start everything and wait until `/readyz` says so.

        Raises:
            UserError: the port is busy, or Triton or a stage does not start; with the reason.
        """
        if self._given_port is not None:
            require_free(self._given_port, self._host, "stop it or choose another --port")
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(self._networks)
            self._networks.ensure()  # before Ray starts: a network that cannot be loaded is told of at once
            if not cleanup.enter_context(local_ray()):
                cleanup.callback(serve.shutdown)  # a Ray of our own takes Serve with it when it ends
            self._start_graph()
            self._wait_until_ready()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        with self._ensuring:  # by a thread that watches
            self._cleanup.close()

    def watch(self) -> None:
        """Wait until an interrupt, or the end of the block.

        Meanwhile start Triton again should it end, and have one that others started again load the networks; as long as that fails,
        answers do without it.
        """
        pause_s, looked_at = WATCH_S, time.monotonic()
        while not self._closed.wait(pause_s):
            if (
                pause_s == WATCH_S
                and not self._networks.ended
                and time.monotonic() - looked_at < LOOK_INTERVAL_S
            ):
                continue
            try:
                with self._ensuring:
                    if not self._closed.is_set():
                        self._networks.ensure()
                pause_s = WATCH_S
            except (
                Exception
            ) as error:  # a full disk, too little memory: whatever it is, answers go on without the networks
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                logger.error("the networks are not served, and tried again in %.0f s: %s", pause_s, error)
            looked_at = time.monotonic()

    def _start_graph(self) -> None:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        try:
            serve.start(
                proxy_location=ProxyLocation.Disabled, logging_config=quiet
            )  # the ingress replica listens itself
            graph = build_graph(self._settings, self._topology, self._replicas)
            serve.run(graph, name=APPLICATION, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            deployments = [
                one for app in serve.status().applications.values() for one in app.deployments.values()
            ]
            report = "\n".join([str(error), *(deployment.message for deployment in deployments)])
            raise UserError(
                f"the serving graph does not start: {users_mistake(report, type(error).__name__)}"
            ) from None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        answer = "no answer"
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=2):
                    return
            except urllib.error.HTTPError as error:
                answer = f"status {error.code}"
            except OSError as error:
                answer = str(error)
            time.sleep(0.05)
        raise UserError(f"{self.url}/readyz was not ready after {READY_TIMEOUT_S:.0f} s: {answer}")
