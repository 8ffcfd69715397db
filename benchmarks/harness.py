"""Helpers of all benchmarks: the record of the machine, percentiles, and result files."""

import contextlib
import json
import multiprocessing
import platform
import queue
import re
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from passerelle.files import write_text
from passerelle.manifest import git_commit

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "torch",
    "pytorch-lightning",
    "ray",
    "onnxruntime",
    "lightgbm",
    "faiss-cpu",
    "nvidia-pytriton",
    "numpy",
    "pyarrow",
)


def environment() -> dict[str, Any]:
    """Machine, versions, commit and load, as they are when a benchmark starts."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_1_min": psutil.getloadavg()[0],
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    """None where it is not installed: training is also measured on machines without Ray or Triton."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name; on Linux `platform` does not know it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def latency_summary(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles of latencies in milliseconds, and how many there are."""
    values = np.asarray(latencies_ms)
    percentiles = {
        f"p{name}_ms": float(np.percentile(values, level))
        for name, level in (("50", 50), ("95", 95), ("99", 99))
    }
    return {
        "requests": len(values),
        "mean_ms": float(values.mean()),
        **percentiles,
        "max_ms": float(values.max()),
    }


def peak_bytes() -> int:
    """Most memory this program has held; Linux's `ru_maxrss` counts what its parent held when it was forked
    as well.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a module's function returns in a fresh process, so that its peak memory is its own; `error` if it
    fails or is killed.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=_answer, args=(answer, function, arguments))
    child.start()
    found: dict[str, Any] | None = None
    while found is None and (child.is_alive() or not answer.empty()):
        with contextlib.suppress(queue.Empty):
            found = answer.get(timeout=0.1)
    child.join()
    return found or {"error": f"ended with status {child.exitcode}"}


def _answer(answer: Any, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    try:
        answer.put(function(*arguments))
    except Exception:  # the parent shows it
        answer.put({"error": traceback.format_exc(limit=3)})


def write_result(theme: str, started: dict[str, Any], values: dict[str, Any]) -> Path:
    """Store a result as `results/THEME_HARDWARE_DATE.json` and print it as one JSON line, the last of the
    benchmark.

    Args:
        theme: the benchmark's module name.
        started: `environment()` as it was before the work.
        values: what was measured.
    """
    record = {"theme": theme, "environment": started, **values}
    hardware = re.sub(r"\W+", "-", started["gpu"].lower()) if started["gpu"] else f"cpu{started['cores']}"
    path = RESULTS / f"{theme}_{hardware}_{started['date'][:10]}.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
    return path
