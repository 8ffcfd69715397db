"""The running service as a context manager: Triton and the Ray Serve graph, from start to stop.

with Service(Path("artifacts/bundle"), Path("model_repository"), 3, ServiceOptions(port=8000)) as service:
    httpx.post(f"{service.url}/v1/recommend", json={"user_id": 1})
"""

import contextlib
import logging
import threading
import time
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import LoggingConfig

from passerelle.bundle import BundleManifest
from passerelle.errors import UserError
from passerelle.manifest import open_manifest
from ray_cluster.local_ray import local_ray, users_mistake
from ray_cluster.networks import Networks
from serving.addresses import join_address, open_url
from serving.config import ServingConfig
from serving.dependencies import GraphSettings
from serving.graph import Topology, build_graph
from serving.triton.ports import free_ports, require_free

APPLICATION = "passerelle"
EVENTS_NAME = "events.sqlite"
READY_TIMEOUT_S = 60.0
WATCH_S, CHECK_INTERVAL_S, MAX_PAUSE_S = 1.0, 5.0, 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceOptions:
    """How a published bundle is served."""

    topology: Topology = "fused"
    """Every stage in one replica (`fused`), or one deployment for each stage (`staged`)."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int | None = None
    """HTTP port; a free one when absent."""
    triton: str | None = None
    """`HOST:PORT` of a running server over the same repository; one is started here when absent."""
    replicas: int = 1
    """Processes of each deployment; they share the address, and the memory of the bundle's files."""
    serving: ServingConfig = field(default_factory=ServingConfig)
    """Playlists, rules, limits; events go into the repository's folder where it names no other file."""
    exact: bool = False
    """Search all vectors, whether there is an index or not."""


class Service:
    """One version of a bundle, served over HTTP from this machine until the block ends or fails.

    Args:
        bundle: an intact bundle.
        repository: the model repository that holds its networks.
        version: their version there.
    """

    def __init__(
        self, bundle: Path, repository: Path, version: int, options: ServiceOptions = ServiceOptions()
    ) -> None:
        self._options = options
        self._port = options.port or free_ports(1, options.host)[0]
        self._networks = Networks(repository, version, options.triton)
        self.repository = repository.resolve()
        events = options.serving.events
        events = events.model_copy(update={"file": events.file or self.repository / EVENTS_NAME})
        self._settings = GraphSettings(
            bundle=bundle.resolve(),
            bundle_id=open_manifest(bundle, BundleManifest, verify=False).bundle_id,
            version=version,
            triton=self._networks.address,
            listen=join_address(options.host, self._port),
            serving=options.serving.model_copy(update={"events": events}),
            exact=options.exact,
        )
        self._cleanup = contextlib.ExitStack()
        self._closed = threading.Event()
        self._ensuring = threading.Lock()

    @property
    def url(self) -> str:
        """Address of the HTTP interface."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._options.host, self._options.host)
        return f"http://{join_address(host, self._port)}"

    @property
    def triton(self) -> str:
        """`HOST:PORT` of Triton's gRPC service."""
        return self._networks.address

    def __enter__(self) -> Self:
        """Start everything and wait until `/readyz` says so.

        Raises:
            UserError: the port is busy, or Triton or a stage does not start; with the reason.
        """
        if self._options.port is not None:
            require_free(self._options.port, self._options.host, "stop it or choose another --port")
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(self._networks)
            # Before Ray starts, so that a network that cannot be loaded is reported at once.
            self._networks.ensure()
            if not cleanup.enter_context(local_ray()):
                # A Ray of our own ends Serve with it.
                cleanup.callback(serve.shutdown)
            self._start_graph()
            self._wait_until_ready()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        # A thread in `watch` may be loading networks.
        with self._ensuring:
            self._cleanup.close()

    def watch(self) -> None:
        """Wait until an interrupt, or the end of the block.

        Meanwhile a Triton that has ended is started again, and one that others
        have restarted loads the networks.
        As long as that fails, answers are made without it.
        """
        pause_s, checked_at_s = WATCH_S, time.monotonic()
        while not self._closed.wait(pause_s):
            if (
                pause_s == WATCH_S
                and not self._networks.ended
                and time.monotonic() - checked_at_s < CHECK_INTERVAL_S
            ):
                continue
            try:
                with self._ensuring:
                    if not self._closed.is_set():
                        self._networks.ensure()
                pause_s = WATCH_S
            # A full disk, too little memory: whatever it is, answers are made without the networks.
            except Exception as error:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                logger.error("the networks are not served, and tried again in %.0f s: %s", pause_s, error)
            checked_at_s = time.monotonic()

    def _start_graph(self) -> None:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        try:
            # The ingress replica listens itself.
            serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
            graph = build_graph(self._settings, self._options.topology, self._options.replicas)
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
                with open_url(f"{self.url}/readyz", timeout_s=2):
                    return
            except urllib.error.HTTPError as error:
                answer = f"status {error.code}"
            except OSError as error:
                answer = str(error)
            time.sleep(0.05)
        raise UserError(f"{self.url}/readyz was not ready after {READY_TIMEOUT_S:.0f} s: {answer}")
