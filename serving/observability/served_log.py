"""The log of served answers and of warnings, as JSON lines without user ids, secrets or exact places."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from passerelle.errors import UserError
from serving.schemas.recommend import Place, RecommendResponse

ROTATION_CHECK_INTERVAL_S = 1.0

logger = logging.getLogger(__name__)


class ServedLog:
    """Appends to a file that several processes may share: each line is written at once.

    Args:
        path: the file; None writes nothing.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._checked_at = 0.0
        self._lock = threading.Lock()
        self._failing = False
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self._messages = _Messages(self._write)
        logging.getLogger("serving").addHandler(self._messages)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            logging.getLogger("serving").removeHandler(self._messages)
            self._file.close()
            self._file = None

    def served(self, answer: RecommendResponse, pseudonym: str | None, place: Place | None) -> None:
        """Logs an answer.

        Args:
            pseudonym: of the user.
            place: of the request; rounded to a tenth of a degree, some ten kilometres.
        """
        if self._file is None:
            return
        line = {
            "kind": "served",
            "request_id": answer.request_id,
            "pseudonym": pseudonym,
            "model_version": answer.model_version,
            "playlist": answer.playlist,
            "experiment": answer.experiment,
            "variant": answer.variant,
            "fallback": answer.fallback,
            "degraded": answer.degraded,
            "near": None if place is None else [round(place.latitude, 1), round(place.longitude, 1)],
            "items": [item.item_id for item in answer.items],
            "scores": [item.score for item in answer.items],
            "timings_ms": {name: round(value, 3) for name, value in answer.timings_ms.model_dump().items()},
        }
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            with self._lock:
                self._reopen_if_rotated()
                self._file.write(json.dumps({"at_ms": time.time_ns() // 1_000_000, **line}).encode() + b"\n")
        # A full disk must not fail the answer.
        except OSError as error:
            already_failing, self._failing = self._failing, True
            if not already_failing:
                logger.error("answers are not logged: %s", error.strerror)
        else:
            self._failing = False

    def _reopen_if_rotated(self) -> None:
        """Opens a new file where a log rotation has moved the old one away."""
        if (
            self._file is None
            or self._path is None
            or time.monotonic() - self._checked_at < ROTATION_CHECK_INTERVAL_S
        ):
            return
        self._checked_at = time.monotonic()
        if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
            old, self._file = self._file, self._path.open("ab", buffering=0)
            old.close()


class _Messages(logging.Handler):
    """Warnings and errors of this package as lines of the same file."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(
            {
                "kind": "message",
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            }
        )
