"""Show where a run is while other processes train it: reads the two small files the run writes."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from passerelle.progress import Progress
from training.runs.callbacks import HISTORY, PROGRESS

_INTERVAL_S = 0.5


@contextmanager
def watch_run(
    run_path: Path, progress: Progress, on_epoch: Callable[[dict[str, Any]], None]
) -> Iterator[None]:
    """Report the progress of a run until the block ends, and call `on_epoch`
    with each new line of its history.
    """
    stop = threading.Event()
    watcher = _Watcher(run_path, progress, on_epoch)

    def poll() -> None:
        while not stop.wait(_INTERVAL_S):
            watcher.look()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        watcher.look()


class _Watcher:
    def __init__(
        self, run_path: Path, progress: Progress, on_epoch: Callable[[dict[str, Any]], None]
    ) -> None:
        self._progress_file, self._history_file = run_path / PROGRESS, run_path / HISTORY
        self._progress, self._on_epoch = progress, on_epoch
        self._last_epoch = self._lines()[-1]["epoch"] if self._lines() else 0

    def look(self) -> None:
        for line in self._lines():
            if line["epoch"] > self._last_epoch:
                self._last_epoch = line["epoch"]
                self._on_epoch(line)
        try:
            where = json.loads(self._progress_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not yet there, or being rewritten: the next look will see it
            return
        steps = where["steps_per_epoch"]
        self._progress(f"epoch {where['epoch']}/{where['max_epochs']}", where["step"], steps)

    def _lines(self) -> list[dict[str, Any]]:
        try:
            text = self._history_file.read_text(encoding="utf-8")
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
