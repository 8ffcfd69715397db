"""Triton's `onnxruntime` backend in Python, for the embedded server, which has no C++ one.

Triton's Python stub executes this file; nothing in the project imports it.
It serves `<model>/<version>/model.onnx` with the same `config.pbtxt` as NVIDIA's C++ backend.
That means the same parameter names, the same rule for dims (a fixed dimension of the file must be written in
the configuration), and the same completion of a configuration that names no tensors.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_CONSUMED = ctypes.c_char_p(b"used_dltensor")
# NVIDIA's backend sets it where the configuration has none.
DEFAULT_MAX_BATCH_SIZE = 4

_TRITON_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel:
    """One instance of one version of a model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Adds the inputs, outputs and batching of the ONNX file to a configuration that leaves them out."""
        config = auto_complete_model_config.as_dict()
        if (
            all(_is_complete(tensor) for tensor in config["input"] + config["output"])
            and config["input"]
            and config["output"]
        ):
            return auto_complete_model_config
        session = _open_session(_path_given_to_stub(), {})
        tensors = [*session.get_inputs(), *session.get_outputs()]
        silent = not config["input"] and not config["output"] and config["max_batch_size"] == 0
        if silent and all(tensor.shape and _dim(tensor.shape[0]) == -1 for tensor in tensors):
            auto_complete_model_config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
            auto_complete_model_config.set_dynamic_batching()
        first = 1 if config["max_batch_size"] else 0
        for tensor in session.get_inputs():
            auto_complete_model_config.add_input(_described(tensor, first))
        for tensor in session.get_outputs():
            auto_complete_model_config.add_output(_described(tensor, first))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the ONNX file and compares it with the configuration.

        Raises:
            TritonModelException: the file is missing or broken, its tensors are not the configuration's, or a
                GPU is asked for.
        """
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] == "GPU":
            raise pb_utils.TritonModelException(
                f"{args['model_name']}: this backend runs on the CPU; "
                "for KIND_GPU serve the repository with NVIDIA's container"
            )
        filename = config["default_model_filename"] or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / filename
        self._session = _open_session(path, config["parameters"])
        self._batched = config["max_batch_size"] > 0
        for kind, tensors in (("input", self._session.get_inputs()), ("output", self._session.get_outputs())):
            _compare(path, kind, tensors, config[kind], self._batched)
        self._inputs: list[str] = [tensor["name"] for tensor in config["input"]]
        self._outputs: list[str] = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Runs the requests of a batch together.

        The dynamic batcher has made their shapes equal except for the batch dimension.
        """
        feeds = [
            {name: _as_array(pb_utils.get_input_tensor_by_name(request, name)) for name in self._inputs}
            for request in requests
        ]
        if not self._batched or len(feeds) == 1:
            return [self._respond(feed, [None])[0] for feed in feeds]
        merged = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds]).tolist()
        return self._respond(
            merged, [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        )

    def _respond(self, feed: dict[str, Any], slices: list[slice | None]) -> list[Any]:
        """Returns one response for each slice of the batch; when the run fails, each of them is the error."""
        try:
            values = self._session.run(self._outputs, feed)
        # The exceptions of onnxruntime share no base class.
        except Exception as error:
            return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error))) for _ in slices]
        return [
            pb_utils.InferenceResponse(
                [
                    _as_tensor(name, value if rows is None else value[rows])
                    for name, value in zip(self._outputs, values, strict=True)
                ]
            )
            for rows in slices
        ]


def _as_array(tensor: Any) -> Any:
    """Returns a tensor's values.

    Under numpy 2 the stub's own `as_numpy` repeats the first value without an error; DLPack does not.
    """
    return np.from_dlpack(tensor)


def _as_tensor(name: str, array: Any) -> Any:
    """Returns a named output.

    Under numpy 2 the stub's `Tensor(name, array)` is empty without an error; DLPack works.
    The stub marks the capsule as consumed under a name that numpy does not know.
    Without the right name numpy would write an error to the log for every output.
    """
    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), _CONSUMED)
    return tensor


def _path_given_to_stub() -> Path:
    """Returns the model file, which is the first argument of the stub's own command line.

    `auto_complete_config` is called without it.
    """
    return Path(Path("/proc/self/cmdline").read_text(encoding="utf-8").split("\0")[1])


def _open_session(path: Path, parameters: dict[str, Any]) -> Any:
    # Imported here: a complete configuration does not need it.
    import onnxruntime

    if not path.is_file():
        raise pb_utils.TritonModelException(f"{path}: no such file; every version folder holds a model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = _thread_count(parameters, "intra_op_thread_count")
    options.inter_op_num_threads = _thread_count(parameters, "inter_op_thread_count")
    # Threads of an idle model must not keep a core busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # The exceptions of onnxruntime share no base class.
    except Exception as error:
        raise pb_utils.TritonModelException(f"{path}: not a valid ONNX model ({error})") from None


def _thread_count(parameters: dict[str, Any], key: str) -> int:
    """Returns a thread count from `parameters { key: ... value: { string_value: ... } }`.

    The default 0 means a thread for each core.
    """
    text = parameters.get(key, {}).get("string_value", "0")
    if not text.isascii() or not text.isdigit():
        raise pb_utils.TritonModelException(f"parameters {key}: expected a number of threads, got {text!r}")
    return int(text)


def _dim(value: int | str | None) -> int:
    return value if isinstance(value, int) else -1


def _is_complete(tensor: dict[str, Any]) -> bool:
    return bool(tensor["dims"]) and tensor["data_type"] != "TYPE_INVALID"


def _described(tensor: Any, first: int) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": _TRITON_TYPES[tensor.type],
        "dims": [_dim(value) for value in tensor.shape[first:]],
    }


def _compare(
    path: Path, kind: str, tensors: list[Any], configured: list[dict[str, Any]], batched: bool
) -> None:
    by_name = {tensor.name: tensor for tensor in tensors}
    names = {tensor["name"] for tensor in configured}
    missing = set(by_name) - names if kind == "input" else set()
    if missing or names - set(by_name):
        raise pb_utils.TritonModelException(
            f"{path}: has {kind}s {sorted(by_name)}, config.pbtxt says {sorted(names)}"
        )
    for wanted in configured:
        tensor = by_name[wanted["name"]]
        shape = [_dim(value) for value in tensor.shape]
        dims = [-1, *wanted["dims"]] if batched else wanted["dims"]
        fits = len(shape) == len(dims) and all(
            have in (-1, want) for have, want in zip(shape, dims, strict=True)
        )
        if not fits or (batched and shape[0] != -1):
            batch = " (the first is the batch, from max_batch_size)" if batched else ""
            raise pb_utils.TritonModelException(
                f"{path}: {kind} {tensor.name} has dims {shape}, config.pbtxt says {dims}{batch}"
            )
        if _TRITON_TYPES.get(tensor.type) != wanted["data_type"]:
            raise pb_utils.TritonModelException(
                f"{path}: {kind} {tensor.name} is {tensor.type}, config.pbtxt says {wanted['data_type']}"
            )
