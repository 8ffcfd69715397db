"""Limits of containers, by files as the kernel writes them."""

import os
from pathlib import Path

import pytest

from passerelle.machine import usable_cores, usable_memory_bytes

GIB = 2**30
CORES = len(os.sched_getaffinity(0))
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def system(root: Path, groups: str, **files: str) -> Path:
    """Writes a file system with the control groups of this process; `__` stands for a slash."""
    for name, text in {"proc__self__cgroup": groups, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def in_group(path: str, file: str) -> str:
    return f"sys/fs/cgroup/{path}/{file}".replace("//", "/").replace("/", "__")


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, CORES, MEMORY),
        ("0::/\n", {"cpu.max": "100000 100000\n", "memory.max": f"{GIB}\n"}, 1, GIB),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1, MEMORY),
        ("0::/\n", {"cpu.max": "9900000 100000\n", "memory.max": f"{2**50}\n"}, CORES, MEMORY),
        # The group itself has no limit, the one around it has.
        ("0::/pods/one\n", {"pods/cpu.max": "50000 100000", "pods/one/cpu.max": "max 100000"}, 1, MEMORY),
        ("0::/pods/one\n", {"pods/memory.max": "max", "pods/one/memory.max": "4096"}, CORES, 4096),
        # The path is one of the host, which the container does not see.
        ("0::/../../docker/abc\n", {"cpu.max": "100000 100000"}, 1, MEMORY),
        (
            "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n",
            {
                "cpu,cpuacct/docker/a/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
                "memory/docker/a/memory.limit_in_bytes": str(GIB),
            },
            1,
            GIB,
        ),
        (
            "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            CORES,
            MEMORY,
        ),
        ("3:cpuset:/\n", {"cpu.max": "1 100000"}, CORES, MEMORY),
    ],
)
def test_limits_of_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], cores: int, memory: int
) -> None:
    root = system(tmp_path, groups, **{in_group(*_split(name)): text for name, text in files.items()})
    assert (usable_cores(root), usable_memory_bytes(root)) == (cores, memory)


def _split(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    return folder, file


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert (usable_cores(tmp_path), usable_memory_bytes(tmp_path)) == (CORES, MEMORY)


def test_a_process_bound_to_a_core_may_use_one() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
