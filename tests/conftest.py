"""Bundles that several test folders share, and how the tests are shared out among worker processes.

The bundles are read-only: a test that alters one copies it first.
"""

import os
import signal

import pytest
from hypothesis import settings
from xdist.remote import Producer

from passerelle.bundle import Bundle, open_bundle
from tests.support.bundles import Shape, build_bundle
from tests.support.worker_groups import GroupScheduling, sort_by_length

# As `ray_cluster` does, for tests that import serving alone.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# A shell starts background jobs with Ctrl-C ignored, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes depends on what else the machine does.
settings.register_profile("passerelle", deadline=None)
settings.load_profile("passerelle")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sort_by_length(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    return GroupScheduling(config, log)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """300 items and 40 users with int64 ids."""
    return open_bundle(build_bundle(tmp_path_factory.mktemp("int64") / "bundle"))


@pytest.fixture(scope="session")
def unicode_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same size, with accents, spaces and Chinese characters in its string ids."""
    return open_bundle(build_bundle(tmp_path_factory.mktemp("unicode") / "bundle", Shape(string_ids=True)))
