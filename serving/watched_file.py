"""Something made of a file that may change while it is served."""

import logging
import threading
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
        self._poll_s = poll_s
        self._stamp = self._stamped()
        self.value = load(path)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name=f"watch {path.name}", daemon=True).start()

    def check(self) -> None:
        """Load the file anew if it has changed."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        try:
            self.value = self._load(self._path)
        except (UserError, OSError) as error:
            logger.error("%s is not read again, what was read before stays: %s", self._path, error)
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

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self.check()
            except Exception:  # whatever is in the file, the next version of it is to be read
                logger.exception("%s is not read again, what was read before stays", self._path)
