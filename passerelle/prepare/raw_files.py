"""Digests of the files that a dataset is made from, computed while they are read."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from passerelle.files import sha256_of
from passerelle.prepare.config import PrepareConfig
from passerelle.prepare.sources import resolve_files


@contextmanager
def raw_digests(config: PrepareConfig, source: Path) -> Iterator["Future[dict[str, str]]"]:
    """Yields the SHA-256 of every file that a configuration reads, by its path below the source folder.

    Another thread computes them, and is stopped where the block fails.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="digests") as pool:
        digests = pool.submit(_digests, config, source, stopped)
        try:
            yield digests
        finally:
            stopped.set()


def _digests(config: PrepareConfig, source: Path, stopped: threading.Event) -> dict[str, str]:
    tables = (*config.events, config.items, config.users)
    files = {file: None for table in tables if table.files for file in resolve_files(source, table.files)}
    return {
        str(file.relative_to(source)) if file.is_relative_to(source) else str(file): sha256_of(
            file, stopped.is_set
        )
        for file in files
    }
