"""Triton over gRPC: the only file that imports `tritonclient`.

client = TritonClient("127.0.0.1:8001")
outputs = await client.infer("ranker", 3, {"features": features_CF})
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from passerelle.errors import UserError
from serving.addresses import is_loopback
from serving.triton.inference import INFER_TIMEOUT_S, InferenceError

Arrays = Mapping[str, npt.NDArray[Any]]

LOAD_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 1.0
_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    # By default a server that comes back is found after up to two minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Unlimited, as in tritonclient's own channels.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Clients of one address would share their state: a new client of a restarted server would find it gone.
    ("grpc.use_local_subchannel_pool", 1),
]


class TritonError(InferenceError):
    """Triton could not answer."""


class TritonClient:
    """An asynchronous client of one server, for use within one event loop.

    Args:
        address: `HOST:PORT` of Triton's gRPC service.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection: Any = None
        self._max_batch_sizes: dict[tuple[str, int], int] = {}

    async def infer(
        self, model: str, version: int, inputs: Arrays, timeout_s: float = INFER_TIMEOUT_S
    ) -> dict[str, npt.NDArray[Any]]:
        """Runs one version of a model and returns every output by name.

        Raises:
            TritonError: no answer within `timeout_s`, an unknown model or version, or inputs that do not fit.
        """
        tensors = [_input(name, array) for name, array in inputs.items()]
        try:
            result = await self._client().infer(
                model, tensors, model_version=str(version), client_timeout=timeout_s
            )
        except InferenceServerException as error:
            raise _typed(f"{model} version {version} at {self.address}", error) from None
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    async def max_batch_size(self, model: str, version: int, timeout_s: float = INFER_TIMEOUT_S) -> int:
        """Returns the largest number of rows of one request, from the loaded configuration; asked once."""
        key = (model, version)
        if key not in self._max_batch_sizes:
            try:
                answer = await self._client().get_model_config(model, str(version), client_timeout=timeout_s)
            except InferenceServerException as error:
                raise _typed(f"{model} version {version} at {self.address}", error) from None
            self._max_batch_sizes[key] = int(answer.config.max_batch_size)
        return self._max_batch_sizes[key]

    async def ready(self, model: str, version: int) -> bool:
        """Returns whether this version of the model answers requests; False also without the server."""
        try:
            return bool(
                await self._client().is_model_ready(model, str(version), client_timeout=READY_TIMEOUT_S)
            )
        except InferenceServerException:
            return False

    async def load(
        self, model: str, config_path: Path, versions: Iterable[int], timeout_s: float = LOAD_TIMEOUT_S
    ) -> None:
        """Has Triton serve exactly these versions of a model, with the configuration of `config_path`.

        No file is changed, and a version that is served already goes on answering while another one loads.

        Raises:
            TritonError: Triton refuses, or is not done within `timeout_s`.
            UserError: the configuration cannot be read.
        """
        config = read_model_config(config_path)
        config.version_policy.specific.versions[:] = sorted(versions)
        text = json_format.MessageToJson(config, preserving_proto_field_name=True)
        try:
            await self._client().load_model(model, config=text, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise _typed(f"loading {model} at {self.address}", error) from None

    async def unload(self, model: str) -> None:
        """Has Triton stop serving every version of a model.

        Raises:
            TritonError: Triton refuses.
        """
        try:
            await self._client().unload_model(model, client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise _typed(f"unloading {model} at {self.address}", error) from None

    async def loaded_versions(self, model: str) -> list[int]:
        """Returns the versions of a model that answer now.

        Raises:
            TritonError: the server does not answer.
        """
        try:
            index = await self._client().get_model_repository_index(client_timeout=INFER_TIMEOUT_S)
        except InferenceServerException as error:
            raise _typed(f"repository of {self.address}", error) from None
        return sorted(
            int(entry.version) for entry in index.models if entry.name == model and entry.state == "READY"
        )

    async def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    def _client(self) -> Any:
        # Made on first use: gRPC ties a channel to the running event loop.
        if self._connection is None:
            # gRPC would ask a proxy of the environment for this machine, too.
            use_proxy = not is_loopback(self.address.rpartition(":")[0])
            options = [*_CHANNEL, ("grpc.enable_http_proxy", int(use_proxy))]
            self._connection = triton.InferenceServerClient(self.address, channel_args=options)
        return self._connection


def read_model_config(path: Path) -> Any:
    """Parses a `config.pbtxt` into Triton's `ModelConfig` message.

    Raises:
        UserError: the file is missing, or is not a model configuration.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such model configuration: `passerelle publish` writes one") from None
    return parse_model_config(text, str(path))


def parse_model_config(text: str, where: str) -> Any:
    """Parses the text of a `config.pbtxt`; `where` names it in errors."""
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise UserError(f"{where}: not a Triton model configuration ({error})") from None


def _input(name: str, array: npt.NDArray[Any]) -> Any:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return tensor


def _typed(what: str, error: InferenceServerException) -> TritonError:
    return TritonError(what, str(error.status()).removeprefix("StatusCode."), str(error.message()))
