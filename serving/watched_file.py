"""Something made of a file that may change while it is served."""

import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from passerelle.errors import UserError

T = TypeVar("T")
POLL_S = 1.0

logger = logging.getLogger(__name__)


class WatchedFile(Generic[T]):
    """What `load` makes of a file, made again in the background when the file is another one or its time or size differ.

    A file that cannot be loaded at the start is an error; later it is logged, and what was loaded before stays.

    Args:
        path: the file.
        load: called with it; also when there is no such file.
        poll_s: how often it is looked at, seconds.
    """

    def __init__(self, path: Path, load: Callable[[Path], T], *, poll_s: float = POLL_S) -> None:
        self._path = path
        self._load = load
        self._stamp = self._seen = self._stamped()
        self.value = load(path)
        self._stopped = threading.Event()
        watching = (weakref.ref(self), self._stopped, poll_s)  # the thread ends with what it works for
        threading.Thread(target=_watch, args=watching, name=f"watch {path.name}", daemon=True).start()

    def check(self) -> None:
        """Load the file anew if it has changed, and is as it was when it was looked at before. One that has vanished changes nothing."""
        stamp, before = self._stamped(), self._seen
        self._seen = stamp
        if stamp in (self._stamp, None) or stamp != before:  # one that is still being written is looked at again
            return
        try:
            self.value = self._load(self._path)
        except (UserError, OSError) as error:
            logger.error("%s is not read again, what was read before stays: %s", self._path, error)
        finally:
            self._stamp = stamp

    def close(self) -> None:
        """Look no longer."""
        self._stopped.set()

    def _stamped(self) -> tuple[int, int, int] | None:
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
        try:
            alive.check()
        except Exception:  # whatever is in the file, the next version of it is to be read
            logger.exception("what was read before stays")
        del alive
