"""Which tests run in one worker process, and in which order the groups are handed out.

`make test` runs `-n 2 --dist loadgroup --no-loadscope-reorder`.
So a group stays in one worker, and groups are handed out in the order of collection.
A group is a file, so that its fixtures are made once.
The tests that use the running service are one group, so that Ray, Triton and the parity gate start once.
The slowest groups come first, because the last one decides how long one worker waits for the other.
"""

import pytest

OF_THE_SERVICE = {"service_url", "repository", "publication"}
LONGEST_FIRST = ("service", "tests/ray_cluster/", "tests/training/", "tests/serving/", "tests/packaging/")


def assign_groups(items: list[pytest.Item]) -> None:
    """Mark each test with its group, and sort the groups by their expected length."""
    files = [item.nodeid.partition("::")[0] for item in items]
    shared = {
        file
        for file, item in zip(files, items, strict=True)
        if OF_THE_SERVICE & set(getattr(item, "fixturenames", ())) and file.startswith("tests/ray_cluster/")
    }
    groups = ["service" if file in shared else file for file in files]
    for item, group in zip(items, groups, strict=True):
        item.add_marker(pytest.mark.xdist_group(group))
    order = sorted(range(len(items)), key=lambda position: _rank(groups[position]))
    items[:] = [items[position] for position in order]


def _rank(group: str) -> int:
    ranks = [rank for rank, prefix in enumerate(LONGEST_FIRST) if group.startswith(prefix)]
    return ranks[0] if ranks else len(LONGEST_FIRST)
