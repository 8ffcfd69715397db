"""What was served, a JSON line an answer. No user ids, no secrets, no exact places."""

import json
import logging
import time
from pathlib import Path
from typing import IO

from passerelle.errors import UserError
from serving.schemas import Place, RecommendResponse

logger = logging.getLogger(__name__)


class ServedLog:
    """Appends to a file that several processes may share: each line is written at once.

    Args:
        path: the file; None writes nothing.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: IO[bytes] | None = None
        self._failing = False
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def served(self, answer: RecommendResponse, identity: str | None, place: Place | None) -> None:
        """One answer: to whom (a name that says nothing), what, by which version, playlist and variant, and how long each stage took."""
        if self._file is None:
            return
        line = {
            "kind": "served",
            "at_ms": time.time_ns() // 1_000_000,
            "request_id": answer.request_id,
            "identity": identity,
            "model_version": answer.model_version,
            "playlist": answer.playlist,
            "experiment": answer.experiment,
            "variant": answer.variant,
            "fallback": answer.fallback,
            "degraded": answer.degraded,
            "near": None if place is None else [round(place.latitude, 1), round(place.longitude, 1)],  # some ten kilometres
            "items": [item.item_id for item in answer.items],
            "scores": [item.score for item in answer.items],
            "timings_ms": {name: round(value, 3) for name, value in answer.timings_ms.model_dump().items()},
        }
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:  # an answer does not wait for room on a disk
            if not self._failing:
                logger.error("what is served is not written down: %s", error.strerror)
            self._failing = True
        else:
            self._failing = False
