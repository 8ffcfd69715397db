"""The interface through which stages run networks, and the error of a network that does not answer."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

INFER_TIMEOUT_S = 2.0


class InferenceError(Exception):
    """A network or a stage that could not answer.

    Args:
        what: the network or the stage.
        code: the gRPC name of the reason, for instance `UNAVAILABLE` or `DEADLINE_EXCEEDED`.
        message: details.
    """

    def __init__(self, what: str, code: str, message: str) -> None:
        super().__init__(f"{what}: {code}: {' '.join(message.split())}")
        self.what = what
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["InferenceError"], tuple[str, str, str]]:
        """Makes the error picklable: it crosses from one process to another."""
        return type(self), (self.what, self.code, self.message)


class Inference(Protocol):
    """Runs the networks: Triton when serving, ONNX Runtime in tests."""

    async def infer(
        self,
        model: str,
        version: int,
        inputs: Mapping[str, npt.NDArray[Any]],
        timeout_s: float = INFER_TIMEOUT_S,
    ) -> dict[str, npt.NDArray[Any]]:
        """Returns the outputs of one version of a model by name.

        Raises:
            InferenceError: there is no answer within `timeout_s`, or the inputs do not fit.
        """

    async def max_batch_size(self, model: str, version: int, timeout_s: float = INFER_TIMEOUT_S) -> int:
        """Returns the largest number of rows of one request.

        Raises:
            InferenceError: there is no answer within `timeout_s`.
        """

    async def ready(self, model: str, version: int) -> bool:
        """Returns whether this version of the model answers requests."""
