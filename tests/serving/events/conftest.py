"""A SQLite event store for each test."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.events.sqlite_store import SqliteEventStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteEventStore]:
    opened = SqliteEventStore(tmp_path / "events.sqlite")
    yield opened
    asyncio.run(opened.close())
