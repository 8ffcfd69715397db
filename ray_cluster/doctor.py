"""Examine this machine: gather the data, and report one finding for each subject.

The findings are made in `findings`.
No heavy library is imported here: `import_probe` does that in a process of its own.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from passerelle.errors import UserError
from passerelle.machine import usable_cores, usable_memory_bytes
from passerelle.prepare.config import load_prepare_config, preset_names
from passerelle.prepare.sources import local_source
from ray_cluster.findings import (
    REQUIREMENTS,
    Finding,
    check_data,
    check_disk,
    check_gpu,
    check_imports,
    check_memory,
    check_packages,
    check_pairs,
    check_port,
    check_python,
    check_shared_memory,
    check_triton,
)
from serving.triton.ports import holder_of, require_free
from serving.triton.server import server_environment, wheel_directory

HTTP_PORT = 8000
PROBES = (
    ("torch", "fbgemm_gpu", "torchrec"),
    ("onnxruntime", "faiss", "lightgbm", "tritonclient.grpc", "ray"),
)
"""Modules to import, in one process for each group."""
PROBE_TIMEOUT_S = 60


def read_pins(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns the versions of the `package==version` lines of requirement files; none
    where there is no such folder.
    """
    files = [folder / name for name in names]
    lines = [
        line for file in files if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()
    ]
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?==(\S+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def installed_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Returns the installed version of each package, None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def run_probe(
    modules: Sequence[str], timeout_s: float = PROBE_TIMEOUT_S
) -> tuple[dict[str, str | None], dict[str, Any] | None]:
    """Import modules in a process of their own.

    Returns:
        The error of each module, None where it was imported, and `import_probe.gpu_report`.
    """
    command = [sys.executable, "-m", "ray_cluster.import_probe", *modules]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        output, code = done.stdout, done.returncode
        ended = (
            f"the process was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"the process left with status {code}"
        )
    except subprocess.TimeoutExpired as timeout:
        output, ended = (timeout.stdout or b"").decode(), f"no answer within {timeout_s:.0f} s"
    reports = [json.loads(line) for line in output.splitlines() if line.startswith('{"module"')]
    errors: dict[str, str | None] = {report["module"]: report["error"] for report in reports}
    gpu = next((report["gpu"] for report in reports if "gpu" in report), None)
    for position, module in enumerate(name for name in modules if name not in errors):
        errors[module] = ended if position == 0 else "not tried after the one before it"
    return errors, gpu


def gpu_driver() -> str | None:
    """Returns the version of the NVIDIA driver, None where there is no nvidia-smi or it finds no device."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def triton_version(folder: Path) -> str | None:
    """Returns the version that the server reports, None when it does not start.

    It has no `--version`, but prints its options before it stops at a repository that is not there.
    """
    command = [
        str(folder / "bin" / "tritonserver"),
        "--model-repository=/nonexistent",
        "--model-control-mode=explicit",
    ]
    closed = [f"--allow-{endpoint}=false" for endpoint in ("http", "grpc", "metrics")]
    try:
        done = subprocess.run(
            [*command, *closed],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env=server_environment(folder),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"server_version\s*\|\s*(\S+)", done.stdout + done.stderr)
    return match[1] if match else None


def port_holder(port: int) -> str | None:
    """Returns the process that listens on a TCP port, as `name (pid 123)`; None when the port is free."""
    try:
        require_free(port, "127.0.0.1", remedy="")
    except UserError:
        return holder_of(port) or "a process of another user"
    return None


def data_sets() -> dict[str, str | None]:
    """Returns the folder of the files of each preset, None where there is none."""
    folders = {name: local_source(load_prepare_config(name)) for name in preset_names()}
    return {name: str(folder) if folder else None for name, folder in folders.items()}


def examine() -> list[Finding]:
    """Returns the findings about this machine; takes as long as importing torch."""
    pins = read_pins(REQUIREMENTS, ["base.txt", "torch.txt", "torchrec-cpu.txt"])
    # One of its two builds is installed: `check_pairs` checks which.
    pins.pop("fbgemm-gpu-cpu", None)
    installed = installed_versions([*pins, "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"])
    try:
        server = wheel_directory()
    except UserError:
        server = None
    stubs = sorted(path.name for path in (server / "python_backend_stubs").iterdir()) if server else []
    with ThreadPoolExecutor() as pool:
        probes = list(pool.map(run_probe, PROBES))
    memory = psutil.virtual_memory()
    total_bytes = usable_memory_bytes()
    shm = Path("/dev/shm")
    return [
        check_python(sys.version_info[:2], stubs),
        *check_packages(pins, installed),
        check_pairs(installed),
        *check_imports({module: error for errors, _ in probes for module, error in errors.items()}),
        check_gpu(probes[0][1], gpu_driver(), installed),
        check_triton(server, triton_version(server) if server else None),
        check_port(HTTP_PORT, port_holder(HTTP_PORT)),
        check_disk(Path.cwd(), shutil.disk_usage(Path.cwd()).free),
        check_memory(min(memory.available, total_bytes), total_bytes, usable_cores()),
        check_shared_memory(shutil.disk_usage(shm).total if shm.is_dir() else None),
        check_data(data_sets()),
    ]
