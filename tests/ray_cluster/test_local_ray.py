"""A Ray for the length of a block: nothing of it is left, and no other Ray is touched."""

import subprocess
import sys

import psutil
import ray

from ray_cluster.local_ray import local_ray
from tests.processes import CHECKOUT

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
        theirs = ray_servers(psutil.Process(child.pid))
        assert len(theirs) == 2
        with local_ray() as started:
            assert started
            ours = ray_servers(psutil.Process()) - theirs
            assert len(ours) == 2
        assert not ray.is_initialized()
        assert ray_servers(psutil.Process()) == theirs
        child.communicate("\n", timeout=30)
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()
