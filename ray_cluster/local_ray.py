"""A quiet Ray on this machine, for as long as a block lasts."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray

_GRACE_S = 2.0
_OBJECT_STORE_BYTES = 128 * 2**20  # requests and answers are small; Ray's default would claim a third of the memory
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # else every worker gives way to whatever else runs on the machine
}


@contextlib.contextmanager
def local_ray() -> Iterator[bool]:
    """Yield whether Ray was started here, and will be stopped; one that is running already is used and left running."""
    if ray.is_initialized():
        yield False
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.serve", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
        yield True
    finally:
        started = _ray_processes()
        ray.shutdown()
        _, left = psutil.wait_procs(started, timeout=_GRACE_S)
        for process in left:  # an agent that was starting itself when its raylet ended notices only later
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _ray_processes() -> list[psutil.Process]:
    """The Ray that this process started: its own children only, as a child that is a program may have a Ray too."""
    package = str(Path(ray.__file__).parent)
    found = []
    for server in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(package in part for part in server.cmdline()):
                found += [server, *server.children(recursive=True)]
    return found
