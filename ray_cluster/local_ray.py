"""A quiet Ray on this machine, for as long as a block lasts."""

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

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
        ray.shutdown()
