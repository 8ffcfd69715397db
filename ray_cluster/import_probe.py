"""Import modules one after another and report each as a JSON line, so that the doctor survives a
library that crashes the process.

python -m ray_cluster.import_probe torch fbgemm_gpu torchrec
"""

import importlib
import json
import sys
import warnings
from typing import Any


def gpu_report() -> dict[str, Any]:
    """Returns the CUDA version that torch was built for (None for a CPU build), and each
    device's name and memory in bytes.
    """
    import torch

    devices = [
        torch.cuda.get_device_properties(index)
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return {
        "cuda_build": torch.version.cuda,
        "devices": [[device.name, device.total_memory] for device in devices],
    }


def probe(name: str) -> dict[str, Any]:
    """Import one module; `error` is None or the last line of what went wrong."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a third-party import raises is the finding
        return {"module": name, "error": " ".join(f"{type(error).__name__}: {error}".split())}
    return {"module": name, "error": None, **({"gpu": gpu_report()} if name == "torch" else {})}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # lightgbm imports it for an interface we do not use: half of the time
    for module in sys.argv[1:]:
        print(json.dumps(probe(module)), flush=True)
