"""Work in a process of its own that is killed at a random moment."""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable

from tests.support.waiting import slow_call


def fork(work: Callable[[], object]) -> int:
    """Starts `work` in a copy of this process, and returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def seconds_of(work: Callable[[], object]) -> float:
    """Runs `work` in a process of its own to its end, and returns how long it took."""
    begun_s = time.monotonic()
    _, status = os.waitpid(fork(work), 0)
    assert status == 0, f"the work itself failed with status {status}"
    return time.monotonic() - begun_s


def kill_within(work: Callable[[], object], seconds: float, rng: random.Random) -> bool:
    """Kills `work` after up to so many seconds, and returns whether it was still running then."""
    child = fork(work)
    slow_call(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
