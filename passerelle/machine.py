"""The processor cores and the memory that this process may use.

In a container these are the limits of its control groups, versions 1 and 2, and not what the machine has.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 2**60
"""Version 1 says "no limit" with a number near 2^63."""


def usable_cores(root: Path = Path("/")) -> int:
    """Returns the number of cores that this process may keep busy, at least 1.

    Args:
        root: of the file system that says so.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, min([affinity, *map(math.ceil, quotas)]))


def usable_memory_bytes(root: Path = Path("/")) -> int:
    """Returns the memory that this process may use, in bytes.

    Args:
        root: of the file system that says so.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [
        limit
        for folder in _groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None and 0 < limit < _UNLIMITED
    ]
    return min([physical, *limits])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control groups, each group and the groups around it.

    A container may not see its own folder, but the root of what it sees is the container's.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = (controllers, controller) if controllers else ("",)
        for mount in dict.fromkeys(mounts):
            top = root / "sys/fs/cgroup" / mount
            folder = top / path.lstrip("/")
            yield from (one for one in (folder, *folder.parents) if one.is_relative_to(top) and one.is_dir())


def _cpu_quota(folder: Path) -> float | None:
    """Returns the cores that a group may keep busy, None where there is no limit."""
    with_period = _words(folder / "cpu.max")
    if len(with_period) == 2 and with_period[0] != "max":
        return int(with_period[0]) / int(with_period[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def _number(file: Path) -> int | None:
    words = _words(file)
    return int(words[0]) if words and words[0] != "max" else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []
