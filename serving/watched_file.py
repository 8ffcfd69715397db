"""A value loaded from a file, and loaded again when the file changes."""

import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from passerelle.errors import UserError

T = TypeVar("T")
FileState = tuple[int, int, int]
"""Inode, modification time and size."""
POLL_S = 1.0
MAX_CHANGED_CHECKS = 3
"""A file that changes at so many checks in a row is loaded, although it may be half-written."""

logger = logging.getLogger(__name__)


class WatchedFile(Generic[T]):
    """The value that `load` makes of a file, loaded again in the background when the file changes.

    A file that cannot be loaded at the start is an error.
    Later it is logged, and the value loaded before stays, or `without` takes its place.

    Args:
        path: the file.
        load: called with the path; its UserError means that the content is invalid, unless an OSError, which
            may be temporary, caused it.
        without: the value while the file is missing or cannot be loaded; the one loaded before, if absent.
        poll_s: seconds between two checks.
    """

    def __init__(
        self, path: Path, load: Callable[[Path], T], *, without: T | None = None, poll_s: float = POLL_S
    ) -> None:
        self._path = path
        self._load = load
        self._without = without
        self._loaded = self._last_seen = self._state()
        self._failed: FileState | None = None
        self._changed_checks = 0
        self.value = load(path)
        self._stopped = threading.Event()
        # The thread holds a weak reference, and ends with the object.
        arguments = (weakref.ref(self), self._stopped, poll_s)
        threading.Thread(target=_watch, args=arguments, name=f"watch {path.name}", daemon=True).start()

    def check(self) -> None:
        """Loads the file again if it differs from the loaded one and has not changed since the last check.

        A file that changes all the time is loaded at every `MAX_CHANGED_CHECKS`-th check.
        Where the value has no substitute, a file that has vanished changes nothing.
        """
        state, before = self._state(), self._last_seen
        self._last_seen = state
        if state is None:
            if before is not None:
                self._give_up("it is missing")
            return
        if state == self._loaded:
            self._changed_checks = 0
            return
        self._changed_checks += 1
        # A file that is still being written is left for the next check.
        if state != before and self._changed_checks < MAX_CHANGED_CHECKS:
            return
        try:
            self.value = self._load(self._path)
        # Whatever is in the file, its next version must be read.
        except Exception as error:
            if state != self._failed:
                self._give_up(str(error), is_expected=isinstance(error, UserError | OSError))
            self._failed = state
            # Not marked as loaded: the next check tries again.
            if not isinstance(error, UserError) or _is_temporary(error):
                return
        self._loaded, self._changed_checks = state, 0

    def _give_up(self, reason: str, *, is_expected: bool = True) -> None:
        stays = "the value read before stays" if self._without is None else "nothing of it is valid any more"
        logger.error("%s cannot be read again, %s: %s", self._path, stays, reason, exc_info=not is_expected)
        if self._without is not None:
            self.value = self._without
            # The same content counts again when it is back.
            self._loaded = None

    def close(self) -> None:
        """Ends the checks."""
        self._stopped.set()

    def _state(self) -> FileState | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _watch(reference: "weakref.ref[WatchedFile[object]]", stopped: threading.Event, poll_s: float) -> None:
    while not stopped.wait(poll_s):
        watched = reference()
        if watched is None:
            return
        watched.check()
        del watched


def _is_temporary(error: UserError) -> bool:
    """Returns whether the operating system caused the error.

    An OSError without a number is how pyarrow reports a damaged file.
    """
    cause = error.__context__
    return isinstance(cause, OSError) and cause.errno is not None
