"""A Ray for the length of a block: nothing of it is left, and no other Ray is touched."""

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from ray_cluster.local_ray import _ensure_private_token, local_ray, own_signals, users_mistake
from serving.addresses import is_loopback, is_unspecified
from tests.support.processes import CHECKOUT

_NEIGHBOUR = """
import time
from ray_cluster.local_ray import local_ray
with local_ray():
    print("ready", flush=True)
    input()
"""


def ray_servers(process: psutil.Process) -> set[int]:
    return {
        child.pid
        for child in process.children(recursive=True)
        if child.name() in {"gcs_server", "raylet"} and child.status() != psutil.STATUS_ZOMBIE
    }


def test_only_the_ray_of_the_block_is_ended() -> None:
    """A child with a Ray of its own, such as `passerelle serve` started from a program, keeps it."""
    child = subprocess.Popen(
        [sys.executable, "-c", _NEIGHBOUR],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        assert len(ray_servers(psutil.Process(child.pid))) == 2
        theirs = ray_servers(
            psutil.Process()
        )  # and those of servers that other tests of this process have left running
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with local_ray() as started:
            assert started
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
            ours = ray_servers(psutil.Process()) - theirs
            assert len(ours) == 2
        assert not ray.is_initialized()
        assert ray_servers(psutil.Process()) == theirs
        child.communicate("\n", timeout=120)
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()


def test_a_signal_that_ray_answers_is_an_interrupt() -> None:
    """Ray's handlers end the process with a status of their own."""

    def init() -> None:
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), own_signals():
        init()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("Traceback\n  passerelle.errors.UserError: no such dataset\n\n", "no such dataset"),
        ("ray::worker()\nUserError: first\n  UserError: the last\nThe actor died.", "the last"),
        ("Traceback\nValueError: 3\n ", "ValueError: 3"),
        (" \n", "TrainingFailedError"),
    ],
)
def test_what_a_report_of_ray_says(report: str, said: str) -> None:
    assert users_mistake(report, "TrainingFailedError") == said


def test_everything_of_a_local_ray_listens_on_loopback_only() -> None:
    def listeners() -> set[tuple[int, str, str]]:
        found = set()
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                found |= {
                    (process.pid, process.name(), connection.laddr.ip)
                    for connection in process.net_connections("tcp")
                    if connection.status == psutil.CONN_LISTEN
                }
        return found

    before = listeners()
    with local_ray() as started:
        assert started
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
        ours = listeners() - before
    assert {"raylet", "gcs_server"} <= {name for _, name, _ in ours}
    everywhere = [
        one for one in ours if not is_loopback(one[2].removeprefix("::ffff:")) or is_unspecified(one[2])
    ]
    assert everywhere == []
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ, "not what later processes inherit"


def test_the_token_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    token = tmp_path / "home" / ".ray" / "auth_token"
    _ensure_private_token(token)
    made = token.read_text()
    assert re.fullmatch("[0-9a-f]{64}", made)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and [*token.parent.iterdir()] == [token]
    token.chmod(0o644)
    _ensure_private_token(token)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text() == made
    (tmp_path / "file").touch()
    _ensure_private_token(tmp_path / "file" / "auth_token")
