"""What this machine has and lacks, one finding a subject, each with its remedy.

`check_*` turn plain data into findings; `examine` gathers the data. No heavy library is imported here: `import_probe` does that elsewhere.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from passerelle.errors import UserError
from passerelle.prepare.config import load_prepare_config, preset_names
from passerelle.prepare.sources import local_source
from serving.triton.ports import holder_of, require_free
from serving.triton.server import server_environment, wheel_directory

FBGEMM_MINOR_OFFSET = 5
"""The pair rule, here and nowhere else: torchrec 1.X and fbgemm 1.X are built against torch 2.(X + 5); any other pair fails at import."""

REQUIREMENTS = Path(__file__).parent.parent / "requirements"
HTTP_PORT = 8000
PROBES = (
    ("torch", "fbgemm_gpu", "torchrec"),
    ("onnxruntime", "faiss", "lightgbm", "tritonclient.grpc", "ray"),
)
"""Modules to import, in one process a group."""
PROBE_TIMEOUT_S = 60
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; `remedy` is empty when there is nothing to mend."""

    subject: str
    level: Literal["ok", "warning", "error"]
    message: str
    remedy: str = ""


def read_pins(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Package -> version of every `package==version` line of requirement files; empty where there is no such folder."""
    files = [folder / name for name in names]
    lines = [
        line for file in files if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()
    ]
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?==(\S+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def installed_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Package -> installed version, None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def check_python(version: tuple[int, int], stubs: Sequence[str]) -> Finding:
    """The interpreter against what the code needs, and against the Python stubs of the embedded Triton server (`3.11`, ...)."""
    text = f"{version[0]}.{version[1]}"
    if version < (3, 11):
        return Finding(
            "python", "error", f"{text} is too old", "install Python 3.11, 3.12 or 3.13, then: make setup"
        )
    if stubs and text not in stubs:
        remedy = (
            f"use one of {', '.join(stubs)}: make setup PYTHON=python3.11, or serve with --triton HOST:PORT"
        )
        return Finding("python", "error", f"{text}: the embedded Triton server has no stub for it", remedy)
    return Finding("python", "ok", text)


def check_packages(pins: Mapping[str, str], installed: Mapping[str, str | None]) -> list[Finding]:
    """One finding that lists what is as pinned, and one for each package that is not."""
    if not pins:
        return [
            Finding(
                "packages",
                "warning",
                f"no requirement files in {REQUIREMENTS}",
                "run from a checkout to compare versions",
            )
        ]
    same = [
        f"{name} {installed[name]}"
        for name, pin in pins.items()
        if (installed[name] or "").split("+")[0] == pin
    ]
    findings = [Finding("packages", "ok", ", ".join(same))] if same else []
    for name, pin in pins.items():
        version = installed[name]
        if version is None:
            findings.append(Finding(name, "error", f"not installed; {pin} is pinned", "make setup"))
        elif version.split("+")[0] != pin:
            findings.append(
                Finding(name, "warning", f"{version} is installed, {pin} is what is tested", "make setup")
            )
    return findings


def _minor(version: str | None, major: int) -> int | None:
    match = re.match(rf"{major}\.(\d+)(?!\d)", version or "")
    return int(match[1]) if match else None


def check_pairs(installed: Mapping[str, str | None]) -> Finding:
    """Whether torch, torchrec and the one fbgemm that is installed were built for each other."""
    subject = "torch pairs"
    fbgemm = {name: version for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if (version := installed.get(name))}
    if len(fbgemm) > 1:
        return Finding(
            subject,
            "error",
            "fbgemm-gpu and fbgemm-gpu-cpu overwrite each other's files",
            "rm -r .venv; make setup",
        )
    build = next(iter(fbgemm), "fbgemm-gpu-cpu")
    parts = {"torch": installed.get("torch"), "torchrec": installed.get("torchrec"), build: fbgemm.get(build)}
    text = ", ".join(f"{name} {version or 'absent'}" for name, version in parts.items())
    torch_minor = _minor(parts["torch"], major=2)
    if torch_minor is None:
        return Finding(subject, "error", f"{text}: torch 2 is needed", "make setup")
    expected = torch_minor - FBGEMM_MINOR_OFFSET
    if all(_minor(version, major=1) == expected for name, version in parts.items() if name != "torch"):
        return Finding(subject, "ok", f"{text} fit together")
    remedy = f"torch 2.{torch_minor} goes with torchrec and fbgemm 1.{expected}: make setup, or pip install --no-deps those"
    return Finding(subject, "error", f"{text} do not fit together", remedy)


def check_imports(errors: Mapping[str, str | None]) -> list[Finding]:
    """One finding that lists the modules that import, and one for each that does not; a value says how the import failed."""
    well = [module for module, error in errors.items() if error is None]
    findings = [Finding("imports", "ok", ", ".join(well))] if well else []
    remedy = "compare the versions above; rm -r .venv; make setup"
    return findings + [
        Finding(f"import {module}", "error", error, remedy)
        for module, error in errors.items()
        if error is not None
    ]


def check_gpu(
    report: Mapping[str, Any] | None, driver: str | None, installed: Mapping[str, str | None]
) -> Finding:
    """What torch can compute on. `report` is `import_probe.gpu_report`, None when torch did not import; `driver` is nvidia-smi's."""
    if report is None:
        return Finding("gpu", "warning", "unknown: torch does not import", "mend torch first")
    if report["devices"]:
        devices = ", ".join(
            f"{name} {memory_bytes / GIB:.0f} GiB" for name, memory_bytes in report["devices"]
        )
        text = f"{devices}; driver {driver or 'unknown'}, CUDA {report['cuda_build']}"
        if installed.get("fbgemm-gpu") is None:
            return Finding("gpu", "warning", f"{text}; but fbgemm is the CPU build", "make setup CUDA=1")
        return Finding("gpu", "ok", text)
    if driver is None:
        return Finding("gpu", "ok", "none: CPU")
    if report["cuda_build"] is None:
        return Finding("gpu", "warning", f"driver {driver}, but torch is a CPU build", "make setup CUDA=1")
    remedy = "update the NVIDIA driver, or check CUDA_VISIBLE_DEVICES"
    return Finding(
        "gpu", "warning", f"driver {driver}, but torch (CUDA {report['cuda_build']}) sees no device", remedy
    )


def check_triton(server: Path | None, version: str | None) -> Finding:
    """The Triton server inside nvidia-pytriton, and the version it reports (None when it does not start)."""
    if server is None:
        return Finding(
            "triton", "error", "no embedded server", "make setup, or serve with --triton HOST:PORT"
        )
    if version is None:
        return Finding(
            "triton",
            "error",
            f"{server} does not start",
            "it needs x86-64 Linux with glibc 2.35; or serve with --triton HOST:PORT",
        )
    return Finding("triton", "ok", f"embedded server {version}")


def check_port(port: int, holder: str | None) -> Finding:
    """Whether the port HTTP requests come to is free; `holder` names the process that has it."""
    if holder is None:
        return Finding(f"port {port}", "ok", "free")
    return Finding(
        f"port {port}",
        "warning",
        f"held by {holder}",
        f"stop it, or: passerelle serve BUNDLE --port {port + 1}",
    )


def check_disk(where: Path, free_bytes: int) -> Finding:
    """Room for data sets, checkpoints and bundles."""
    text = f"{free_bytes / GIB:.1f} GiB free in {where}"
    level: Literal["ok", "warning", "error"] = (
        "error" if free_bytes < GIB else "warning" if free_bytes < 5 * GIB else "ok"
    )
    return Finding("disk", level, text, "" if level == "ok" else "free some, or write elsewhere with --out")


def check_memory(available_bytes: int, total_bytes: int, cores: int) -> Finding:
    """Memory and processor cores this process may use."""
    text = f"{available_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB available, {cores} cores"
    if available_bytes < 4 * GIB:
        return Finding("memory", "warning", text, "stop other work before training")
    return Finding("memory", "ok", text)


def check_shared_memory(size_bytes: int | None) -> Finding:
    """`/dev/shm`, where Ray keeps its object store."""
    if size_bytes is None:
        return Finding("shared memory", "ok", "no /dev/shm here: Ray uses files")
    text = f"/dev/shm {size_bytes / GIB:.1f} GiB"
    if size_bytes < 2 * GIB:
        return Finding(
            "shared memory",
            "warning",
            f"{text}: Ray falls back to slow files",
            "in a container: --shm-size=4g",
        )
    return Finding("shared memory", "ok", text)


def check_data(found: Mapping[str, str | None]) -> Finding:
    """Which presets of `prepare` find their files on this machine; the values are folders."""
    here = [f"{name} in {folder}" for name, folder in found.items() if folder is not None]
    if not here:
        remedy = (
            "set PASSERELLE_DATA to the folder that holds data sets, or let `passerelle prepare` download one"
        )
        return Finding("data sets", "warning", f"none of {', '.join(found)}", remedy)
    return Finding("data sets", "ok", "; ".join(here))


def run_probe(
    modules: Sequence[str], timeout_s: float = PROBE_TIMEOUT_S
) -> tuple[dict[str, str | None], dict[str, Any] | None]:
    """Import modules in a process of their own: module -> error (None is well), and torch's view of the GPU."""
    command = [sys.executable, "-m", "ray_cluster.import_probe", *modules]
    try:
        done = subprocess.run(
            command, cwd=REQUIREMENTS.parent, capture_output=True, text=True, timeout=timeout_s, check=False
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
    """The NVIDIA driver's version, None where there is no nvidia-smi or it finds no device."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def triton_version(folder: Path) -> str | None:
    """What the server says it is. It has no `--version`, but prints its options before it stops at a repository that is not there."""
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
    """The process that listens on a TCP port, as `name (pid 123)`; None when the port is free."""
    try:
        require_free(port, "127.0.0.1", remedy="")
    except UserError:
        return holder_of(port) or "a process of another user"
    return None


def data_sets() -> dict[str, str | None]:
    """Preset -> folder that holds its files."""
    folders = {name: local_source(load_prepare_config(name)) for name in preset_names()}
    return {name: str(folder) if folder else None for name, folder in folders.items()}


def examine() -> list[Finding]:
    """Look at this machine; takes the seconds that importing torch takes."""
    pins = read_pins(REQUIREMENTS, ["base.txt", "torchrec-cpu.txt"])
    pins.pop("fbgemm-gpu-cpu", None)  # one of its two builds is installed: `check_pairs` looks at that
    installed = installed_versions([*pins, "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"])
    try:
        server = wheel_directory()
    except UserError:
        server = None
    stubs = sorted(path.name for path in (server / "python_backend_stubs").iterdir()) if server else []
    with ThreadPoolExecutor() as pool:
        probes = list(pool.map(run_probe, PROBES))
    memory = psutil.virtual_memory()
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
        check_memory(memory.available, memory.total, len(os.sched_getaffinity(0))),
        check_shared_memory(shutil.disk_usage(shm).total if shm.is_dir() else None),
        check_data(data_sets()),
    ]
