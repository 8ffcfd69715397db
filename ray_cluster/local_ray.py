"""A quiet Ray on this machine, for as long as a block lasts, and what every use of Ray needs."""

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import ray
from ray._private import ray_constants

_GRACE_S = 2.0
_OBJECT_STORE_BYTES = (
    128 * 2**20
)  # requests and answers are small; Ray's default would claim a third of the memory
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # else every worker gives way to whatever else runs on the machine
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # calls between deployments over gRPC, in one thread: half as long
    # Which that would switch on: replicas listen by `serving.api.listener`.
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
}


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Restore our handlers of Ctrl-C and SIGTERM after a block in which Ray installs its own.

    Raises:
        KeyboardInterrupt: one of the signals came within the block; Ray's handlers make a `SystemExit` of it,
            with a status of their own.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # in another one Ray leaves handlers alone, and so must we
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def local_ray() -> Iterator[bool]:
    """Yield whether Ray was started here, and will be stopped; one that is running
    already is used and left running.
    """
    if ray.is_initialized():
        yield False
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.serve", "ray._private.authentication.authentication_token_setup"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        _ensure_private_token(Path.home() / ".ray" / "auth_token")
        with own_signals(), _on_loopback():
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


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that is started within the block listen on loopback only.

    It does so where it takes the machine for one that cannot be in a cluster; it has no
    setting for that on Linux.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]
        if before[1] is not None:
            os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = before[1]


def _ensure_private_token(path: Path) -> None:
    """Create Ray's token before Ray does, which lets everybody on the machine read it; one that is
    there becomes private.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            path.chmod(path.stat().st_mode & ~0o077)
            return
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            scratch.touch(0o600)
            scratch.write_text(secrets.token_hex(32), encoding="utf-8")
            # Whole, or not at all: another process may be doing the same.
            with contextlib.suppress(FileExistsError):
                os.link(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def users_mistake(report: str, otherwise: str) -> str:
    """Returns the user's mistake out of a report of a failure on Ray; else its last line,
    and `otherwise` when it is empty.
    """
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    mistakes = [line for line in lines if "UserError: " in line]
    return (mistakes or lines or [otherwise])[-1].rpartition("UserError: ")[2]


def _ray_processes() -> list[psutil.Process]:
    """Returns the Ray processes that this process started: its own children only,
    as a child may have a Ray too.
    """
    package = str(Path(ray.__file__).parent)
    found = []
    for server in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(package in part for part in server.cmdline()):
                found += [server, *server.children(recursive=True)]
    return found
