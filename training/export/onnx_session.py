"""Run ONNX files in this process."""

from pathlib import Path

import onnxruntime


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Returns a session of an ONNX file on the CPU."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
