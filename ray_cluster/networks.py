"""Both networks of one version, in a Triton that this process starts or in one that runs already."""

import asyncio
import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from passerelle.bundle import QUERY_ENCODER, RANKER
from passerelle.errors import UserError
from serving.triton.client import TritonClient, TritonError
from serving.triton.server import TritonServer

ATTEMPTS = 3
_DYING_S = 0.5  # a process that crashes closes its connections about a millisecond before its end can be seen

logger = logging.getLogger(__name__)


class Networks:
    """A context manager: starts a Triton where none is named, and stops it.

    `ensure` then makes the networks answer.

    Args:
        repository: the model repository.
        version: version of both networks.
        address: `HOST:PORT` of a running Triton's gRPC service; one is started here when absent.
    """

    def __init__(self, repository: Path, version: int, address: str | None = None) -> None:
        self._repository = repository
        self._version = version
        self._server = TritonServer(repository) if address is None else None
        self.address = self._server.grpc_address if self._server is not None else str(address)

    def __enter__(self) -> Self:
        """Start the process, without waiting for it; call it from a thread
        that lives on, see `TritonServer`.
        """
        if self._server is not None:
            self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.stop()

    @property
    def ended(self) -> bool:
        """Whether our own Triton has ended by itself."""
        return self._server is not None and self._server.ended

    def ensure(self) -> None:
        """Make Triton serve the version beside those it serves already.

        Our own Triton is started again when it has crashed: its Python backend
        does, once in some hundred loads.

        Raises:
            UserError: Triton does not start, does not answer, or refuses; with its own reason.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._load()
                return
            except UserError as error:
                if (
                    self._server is None
                    or not self._server.started
                    or attempt == ATTEMPTS
                    or not self._server.ends_within(_DYING_S)
                ):
                    raise
                logger.warning("Triton has ended and is started again: %s", error)
                self._server.stop()
                self._server.start()

    def _load(self) -> None:
        if self._server is not None:
            if not self._server.started:  # it could not be started again
                self._server.start()
            self._server.wait_until_ready()
        try:
            asyncio.run(self._load_networks())
        except TritonError as error:
            raise UserError(
                f"Triton cannot serve version {self._version} of {self._repository}: {error}"
            ) from None

    async def _load_networks(self) -> None:
        client = TritonClient(self.address)
        try:
            for model in (QUERY_ENCODER, RANKER):
                versions = await client.loaded_versions(model)
                if self._version not in versions:
                    await client.load(
                        model, self._repository / model / "config.pbtxt", [*versions, self._version]
                    )
        finally:
            await client.close()
