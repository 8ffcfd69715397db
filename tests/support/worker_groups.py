"""Which tests run in one worker process, and in which order the groups are handed out.

`make test` runs `-n 3 --dist loadscope --no-loadscope-reorder` with the scheduler below.
So a group stays in one worker, and groups are handed out in the order of collection.
A group is a file, so that its fixtures are made once.
The files that use the running service are one group, so that Ray, Triton and the parity gate start once.
The slowest groups come first, because the last one decides how long one worker waits for the other.
`loadgroup` of xdist 3.8 does not group under pytest 9.2: it sets an attribute that pytest no longer reads.
"""

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

SERVICE_FIXTURES = {"service_url", "repository", "publication"}
SERVICE_FILES = {
    f"tests/ray_cluster/test_{name}.py" for name in ("faults", "networks", "publishing", "service")
}
LONGEST_FIRST = ("service", "tests/ray_cluster/", "tests/training/", "tests/serving/", "tests/packaging/")


def group_of(nodeid: str) -> str:
    """Returns the group of a test."""
    file = nodeid.partition("::")[0]
    return "service" if file in SERVICE_FILES else file


class GroupScheduling(LoadScopeScheduling):
    """Hands out whole groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def sort_by_length(items: list[pytest.Item]) -> None:
    """Sort tests by the expected length of their group, and keep their order otherwise."""
    items.sort(key=lambda item: _rank(group_of(item.nodeid)))


def files_of_the_service(items: list[pytest.Item]) -> set[str]:
    """Returns the files with a test that uses the running service or its repository."""
    return {
        item.nodeid.partition("::")[0]
        for item in items
        if item.nodeid.startswith("tests/ray_cluster/")
        and SERVICE_FIXTURES & set(getattr(item, "fixturenames", ()))
    }


def _rank(group: str) -> int:
    ranks = [rank for rank, prefix in enumerate(LONGEST_FIRST) if group.startswith(prefix)]
    return ranks[0] if ranks else len(LONGEST_FIRST)
