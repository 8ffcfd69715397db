"""A real Redis server, events and users for tests of event stores."""

import asyncio
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.config import LiveEventsConfig
from serving.events.base import Event, EventStore, EventStoreError
from serving.events.intake import open_store
from serving.triton.ports import free_ports
from tests.support.waiting import eventually

REDIS = shutil.which("redis-server") or shutil.which("valkey-server")
needs_redis = pytest.mark.skipif(REDIS is None, reason="no redis-server here: apt-get install redis-server")
_users = itertools.count()


def start_redis(folder: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """Starts a real server on loopback, and returns it with its address once it answers."""
    (port,) = free_ports(1)
    assert REDIS is not None
    server = subprocess.Popen(
        [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options],
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    wait_for(url)
    return server, url


def wait_for(url: str) -> None:
    async def answers() -> bool:
        store = open_store(LiveEventsConfig(store=url))
        assert store is not None
        try:
            await store.ping()
        except EventStoreError:
            return False
        finally:
            await store.close()
        return True

    eventually(lambda: asyncio.run(answers()), "the server did not start", interval_s=0.05)


DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def redis_store(url: str, **options: float) -> EventStore:
    # The client of Redis is an extra.
    from serving.events.redis_store import RedisEventStore

    return RedisEventStore(url, **options)


def event(user_id: str, event_id: str, timestamp_ms: int = 5, item_id: str = "7") -> Event:
    return Event(event_id, user_id, item_id, "view", timestamp_ms)


def new_user() -> str:
    return f"user № {next(_users)}"


def with_store(open_one: Callable[[], EventStore], work: Callable[[EventStore], Any]) -> Any:
    async def main() -> Any:
        store = open_one()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())
