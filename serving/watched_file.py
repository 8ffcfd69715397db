"""Something made of a file that may change while it is served."""

import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from passerelle.errors import UserError

T = TypeVar("T")
Stamp = tuple[int, int, int]
POLL_S = 1.0
MAX_LOOKS = 3
"""A file that is another one at each look is loaded at this one, half-written or not: else it would never be."""

logger = logging.getLogger(__name__)


class WatchedFile(Generic[T]):
    """What `load` makes of a file, made again in the background when the file is another one or its time or size differ.

    A file that cannot be loaded at the start is an error; later it is logged, and what was loaded before stays.

    Args:
        path: the file.
        load: called with it. A UserError says that what is in the file makes no sense, unless it tells of an OSError: that may pass.
        poll_s: how often it is looked at, seconds.
    """

    def __init__(self, path: Path, load: Callable[[Path], T], *, poll_s: float = POLL_S) -> None:
        self._path = path
        self._load = load
        self._stamp = self._seen = self._stamped()
        self._failed: Stamp | None = None
        self._looks = 0  # in which it was another file than was loaded
        self.value = load(path)
        self._stopped = threading.Event()
        watching = (weakref.ref(self), self._stopped, poll_s)  # the thread ends with what it works for
        threading.Thread(target=_watch, args=watching, name=f"watch {path.name}", daemon=True).start()

    def check(self) -> None:
        """Load the file anew if it has changed, and is as it was when it was looked at before, or changes all the time. One that has
        vanished changes nothing."""
        stamp, before = self._stamped(), self._seen
        self._seen = stamp
        if stamp == self._stamp:
            self._looks = 0
        if stamp in (self._stamp, None):
            return
        self._looks += 1
        if stamp != before and self._looks < MAX_LOOKS:  # one that is still being written is looked at again
            return
        try:
            self.value = self._load(self._path)
        except Exception as error:  # whatever is in the file, the next version of it is to be read
            if stamp != self._failed:
                foreseen = isinstance(error, UserError | OSError)
                logger.error(
                    "%s is not read again, what was read before stays: %s",
                    self._path,
                    error,
                    exc_info=not foreseen,
                )
            self._failed = stamp
            if not isinstance(error, UserError) or _may_pass(error):  # tried again at the next look
                return
        self._stamp, self._looks = stamp, 0

    def close(self) -> None:
        """Look no longer."""
        self._stopped.set()

    def _stamped(self) -> Stamp | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _watch(watched: "weakref.ref[WatchedFile[object]]", stopped: threading.Event, poll_s: float) -> None:
    while not stopped.wait(poll_s):
        alive = watched()
        if alive is None:
            return
        alive.check()
        del alive


def _may_pass(error: UserError) -> bool:
    """Whether it tells of what the system could not do. Without a number it is pyarrow's word for a file that is damaged."""
    cause = error.__context__
    return isinstance(cause, OSError) and cause.errno is not None
