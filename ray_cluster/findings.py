"""What the doctor says of each subject: functions from plain data to findings with remedies."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray_cluster.resources import is_checkout, resource

FBGEMM_MINOR_OFFSET = 5
"""torchrec 1.X and fbgemm 1.X are built against torch 2.(X + 5); any other pair fails at import."""

REQUIREMENTS = resource("requirements")
SETUP = (
    "make setup" if is_checkout() else f"pip install -r {REQUIREMENTS}/base.txt -r {REQUIREMENTS}/torch.txt"
)
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty when there is nothing to mend."""

    subject: str
    level: Literal["ok", "warning", "error"]
    message: str
    remedy: str = ""


def check_python(version: tuple[int, int], stubs: Sequence[str]) -> Finding:
    """Check the interpreter against the versions that the code and the embedded Triton server support.

    Args:
        stubs: Python versions that the server has a stub for, such as `3.11`.
    """
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
    """Returns one finding that lists the packages of pinned versions, and one for each other package."""
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
            findings.append(Finding(name, "error", f"not installed; {pin} is pinned", SETUP))
        elif version.split("+")[0] != pin:
            findings.append(
                Finding(name, "warning", f"{version} is installed, {pin} is what is tested", SETUP)
            )
    return findings


def _minor(version: str | None, major: int) -> int | None:
    match = re.match(rf"{major}\.(\d+)(?!\d)", version or "")
    return int(match[1]) if match else None


def check_pairs(installed: Mapping[str, str | None]) -> Finding:
    """Check that torch, torchrec and the installed fbgemm were built for each other."""
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
        return Finding(subject, "error", f"{text}: torch 2 is needed", SETUP)
    expected = torch_minor - FBGEMM_MINOR_OFFSET
    if all(_minor(version, major=1) == expected for name, version in parts.items() if name != "torch"):
        return Finding(subject, "ok", f"{text} fit together")
    remedy = (
        f"torch 2.{torch_minor} goes with torchrec and fbgemm 1.{expected}: "
        "make setup, or pip install --no-deps those"
    )
    return Finding(subject, "error", f"{text} do not fit together", remedy)


def check_imports(errors: Mapping[str, str | None]) -> list[Finding]:
    """Returns one finding that lists the imported modules, and one for each
    module that failed, with its error.
    """
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
    """Check that torch can compute on the GPU, if there is one.

    Args:
        report: `import_probe.gpu_report`; None when torch did not import.
        driver: version of the NVIDIA driver; None when there is none.
        installed: versions by package.
    """
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
    """Check the Triton server of nvidia-pytriton; `version` is what it
    reports, None when it does not start.
    """
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
    """Check that the HTTP port is free; `holder` names the process that has it."""
    if holder is None:
        return Finding(f"port {port}", "ok", "free")
    return Finding(
        f"port {port}",
        "warning",
        f"held by {holder}",
        f"stop it, or: passerelle serve BUNDLE --port {port + 1}",
    )


def check_disk(where: Path, free_bytes: int) -> Finding:
    """Check the free disk space for data sets, checkpoints and bundles."""
    text = f"{free_bytes / GIB:.1f} GiB free in {where}"
    level: Literal["ok", "warning", "error"] = (
        "error" if free_bytes < GIB else "warning" if free_bytes < 5 * GIB else "ok"
    )
    return Finding("disk", level, text, "" if level == "ok" else "free some, or write elsewhere with --out")


def check_memory(available_bytes: int, total_bytes: int, cores: int) -> Finding:
    """Check the memory and processor cores that this process may use."""
    text = f"{available_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB available, {cores} cores"
    if available_bytes < 4 * GIB:
        return Finding("memory", "warning", text, "stop other work before training")
    return Finding("memory", "ok", text)


def check_shared_memory(size_bytes: int | None) -> Finding:
    """Check `/dev/shm`, where Ray keeps its object store."""
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
    """Check which presets of `prepare` find their files on this machine; the values are folders."""
    here = [f"{name} in {folder}" for name, folder in found.items() if folder is not None]
    if not here:
        remedy = (
            "set PASSERELLE_DATA to the folder that holds data sets, or let `passerelle prepare` download one"
        )
        return Finding("data sets", "warning", f"none of {', '.join(found)}", remedy)
    return Finding("data sets", "ok", "; ".join(here))
