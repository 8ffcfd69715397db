"""Finding every process that a command started, by a mark in the environment that all of them inherit."""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.support.waiting import LIMIT_S, eventually

CHECKOUT = Path(__file__).parents[2]
PASSERELLE = Path(sys.executable).with_name("passerelle")
_MARK = "PASSERELLE_TEST_MARK"


class Command:
    """`passerelle ...` in a process of its own, and all that it starts.

    Args:
        arguments: the verb and its options.
        program: what is run, when it is not `passerelle`.
        cwd: where it is run.
    """

    def __init__(
        self, *arguments: str, program: tuple[str, ...] = (str(PASSERELLE),), cwd: Path = CHECKOUT
    ) -> None:
        self._mark = uuid.uuid4().hex
        environment = {**os.environ, _MARK: self._mark, "COLUMNS": "200", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*program, *arguments],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def alive(self) -> list[str]:
        """Names of the processes that are left, the command itself included."""
        return [process.info["name"] for process in self._left()]

    def kill_all(self) -> None:
        """SIGKILL to the command and to all that it has started, wherever they are."""
        while left := self._left():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.process.poll()

    def _left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 2 * LIMIT_S) -> int:
        """Send a signal, wait for the command, and give its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def left_after(self, seconds: float = LIMIT_S) -> list[str]:
        """Return the names of processes that are left when the time is over; earlier where there are none."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self.alive(), timeout_s=seconds, interval_s=0.2)
        return self.alive()


def run(*arguments: str, timeout_s: float = 5 * LIMIT_S) -> tuple[int, str, str]:
    """Run `passerelle ...` to its end: status, stdout, stderr."""
    command = Command(*arguments)
    stdout, stderr = command.process.communicate(timeout=timeout_s)
    return command.process.returncode, stdout, stderr


@contextlib.contextmanager
def running(
    *arguments: str, program: tuple[str, ...] = (str(PASSERELLE),), cwd: Path = CHECKOUT
) -> Iterator[Command]:
    """A command that is ended, if the test does not do it."""
    command = Command(*arguments, program=program, cwd=cwd)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.end()
        for stream in (command.process.stdout, command.process.stderr):
            assert stream is not None
            stream.close()
