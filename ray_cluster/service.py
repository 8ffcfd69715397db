"""The running service as a context manager: Triton and the Ray Serve graph, started together and stopped together.

with Service(Path("artifacts/bundle"), Path("model_repository"), version=3, port=8000) as service:
    httpx.post(f"{service.url}/v1/recommend", json={"user_id": 1})
"""

import asyncio
import contextlib
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import LoggingConfig

from passerelle.bundle import QUERY_ENCODER, RANKER
from passerelle.errors import UserError
from ray_cluster.local_ray import local_ray
from serving.graph import GraphSettings, Topology, build_graph
from serving.ports import free_ports, require_free
from serving.triton_client import TritonClient, TritonError
from serving.triton_server import TritonServer

APPLICATION = "passerelle"
READY_TIMEOUT_S = 60.0


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
    ) -> None:
        self._repository = repository
        self._version = version
        self._topology: Topology = topology
        self._host = host
        self._given_port = port
        self._port = port or free_ports(1)[0]
        self._server = TritonServer(repository) if triton is None else None
        self.triton_address = self._server.grpc_address if self._server else str(triton)
        self._settings = GraphSettings(
            bundle=bundle.resolve(), version=version, triton=self.triton_address, listen=f"{self._host}:{self._port}"
        )
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Where the HTTP interface answers."""
        return f"http://{'127.0.0.1' if self._host == '0.0.0.0' else self._host}:{self._port}"

    def __enter__(self) -> Self:
        """Start everything and wait until `/readyz` says so.

        Raises:
            UserError: the port is busy, or Triton or a stage does not start; with the reason.
        """
        if self._given_port is not None:
            require_free(self._given_port, self._host, "stop it or choose another --port")
        with contextlib.ExitStack() as cleanup:
            if self._server is not None:
                cleanup.callback(self._server.stop)
                self._server.start()  # in this thread: Triton lives as long as the thread that starts it
            if not cleanup.enter_context(local_ray()):
                cleanup.callback(serve.shutdown)  # a Ray of our own takes Serve with it when it ends
            # Not before Ray is up: Ray forks to start its processes, and a fork beside a gRPC call may crash the child.
            with ThreadPoolExecutor(1) as background:
                loading = background.submit(self._load_networks)
                self._start_graph()
                loading.result()
            self._wait_until_ready()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cleanup.close()

    def watch(self) -> None:
        """Wait for as long as everything runs, which is until an interrupt.

        Raises:
            UserError: Triton has ended; with its own last error lines.
        """
        while True:
            time.sleep(1.0)
            if self._server is not None:
                self._server.require_running()

    def _load_networks(self) -> None:
        if self._server is not None:
            self._server.wait_until_ready()
        try:
            asyncio.run(load_networks(self.triton_address, self._repository, self._version))
        except TritonError as error:
            raise UserError(f"Triton cannot serve version {self._version} of {self._repository}: {error}") from None

    def _start_graph(self) -> None:
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        try:
            serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)  # the ingress replica listens itself
            graph = build_graph(self._settings, self._topology)
            serve.run(graph, name=APPLICATION, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise UserError(f"the serving graph does not start: {_reason(str(error))}") from None

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


async def load_networks(address: str, repository: Path, version: int) -> None:
    """Have Triton serve a version of both networks beside those it serves already.

    Raises:
        TritonError: Triton does not answer, or refuses to load.
    """
    client = TritonClient(address)
    try:
        for model in (QUERY_ENCODER, RANKER):
            versions = await client.loaded_versions(model)
            if version not in versions:
                await client.load(model, repository / model / "config.pbtxt", [*versions, version])
    finally:
        await client.close()


def _reason(message: str) -> str:
    """The user's mistake inside a report of a failed deployment, else its last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    mistakes = [line for line in lines if "UserError" in line]
    return (mistakes or lines or ["no reason given"])[-1].rpartition("UserError: ")[2]
