"""ONNX Runtime in this process instead of Triton, and networks that hang."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from passerelle.arrays import AnyArray
from passerelle.bundle import Bundle
from serving.triton.inference import InferenceError
from tests.support.waiting import slow_answer

MAX_BATCH_SIZE = 64


def session(path: Path) -> onnxruntime.InferenceSession:
    """Opens an ONNX file in this process, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxInference:
    """Runs a bundle's networks and records the shape of each input."""

    def __init__(self, bundle: Bundle) -> None:
        self._sessions = {model: session(bundle.path / f"{model}.onnx") for model in bundle.manifest.networks}
        self.shapes: list[tuple[int, ...]] = []

    async def infer(
        self, model: str, version: int, inputs: Mapping[str, AnyArray], timeout_s: float = 2.0
    ) -> dict[str, AnyArray]:
        network = self._sessions[model]
        self.shapes.append(next(iter(inputs.values())).shape)
        names = [output.name for output in network.get_outputs()]
        return dict(zip(names, network.run(names, dict(inputs)), strict=True))

    async def max_batch_size(self, model: str, version: int, timeout_s: float = 2.0) -> int:
        return MAX_BATCH_SIZE

    async def ready(self, model: str, version: int) -> bool:
        return True


class HangingInference(OnnxInference):
    """Networks that do not answer before the timeout."""

    async def infer(
        self, model: str, version: int, inputs: Mapping[str, AnyArray], timeout_s: float = 2.0
    ) -> dict[str, AnyArray]:
        await slow_answer(timeout_s)
        raise InferenceError(model, "DEADLINE_EXCEEDED", "it hangs")
