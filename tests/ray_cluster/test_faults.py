"""What breaks under load: Triton, the ranker, the event store, a replica.

Answers are right, or say what they did without.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from passerelle.bundle import RANKER, Bundle
from ray_cluster.service import EVENTS_NAME, Service, ServiceOptions
from serving.config import LimitsConfig, ServingConfig
from serving.triton.client import TritonClient, TritonError
from tests.support.load import CLIENTS, Load
from tests.support.waiting import eventually, eventually_async


@pytest.fixture(scope="module")
def service(bundle: Bundle, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two replicas over a repository of their own, watched as `passerelle serve` does."""
    own = tmp_path_factory.mktemp("faults") / "repository"
    shutil.copytree(repository, own, ignore=shutil.ignore_patterns(f"{EVENTS_NAME}*"))
    # On a busy machine the encoder may take longer than its share of the second that is the default.
    serving = ServingConfig(limits=LimitsConfig(deadline_ms=5_000))
    with Service(bundle.path, own, 1, ServiceOptions(replicas=2, serving=serving)) as running:
        threading.Thread(target=running.watch, daemon=True).start()
        yield running


@pytest.fixture
def load(service: Service, bundle: Bundle) -> Load:
    return Load(service.url, bundle)


def listening(address: str) -> list[psutil.Process]:
    """The processes behind HOST:PORT; other tests may run a service of their own beside this one."""
    found, port = [], int(address.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(
                one.laddr.port == port and one.status == psutil.CONN_LISTEN
                for one in process.net_connections("tcp")
            ):
                found.append(process)
    return found


def test_triton_is_killed(service: Service, load: Load) -> None:
    with load.running():
        (killed,) = listening(service.triton)
        killed.kill()
        load.wait_for(lambda: load.degraded[("query_encoder",)] > 0)
        load.wait_for(load.is_whole_again)
    assert listening(service.triton) != [killed] and load.lost == 0


def test_the_ranker_alone_fails(service: Service, load: Load) -> None:
    async def unload_and_load(path: Path) -> None:
        client = TritonClient(service.triton)
        try:
            await client.unload(RANKER)
            await eventually_async(lambda: load.degraded[("ranker",)] > 0)
            await client.load(RANKER, path, [1])
        finally:
            await client.close()

    with load.running():
        asyncio.run(unload_and_load(service.repository / RANKER / "config.pbtxt"))
        load.wait_for(load.is_whole_again)
    assert load.degraded[("ranker",)] > 0 and not load.degraded[("query_encoder",)] and load.lost == 0


def test_the_event_store_is_locked(service: Service, load: Load) -> None:
    statuses = []
    with load.running(), httpx.Client(base_url=service.url, timeout=60) as client:
        blocker = sqlite3.connect(service.repository / EVENTS_NAME)
        blocker.execute("BEGIN EXCLUSIVE")
        event = {"event_id": "a", "user_id": 77_777, "item_id": 7}
        statuses.append(client.post("/v1/events", json=event).status_code)
        blocker.execute("ROLLBACK")
        blocker.close()
        statuses.append(client.post("/v1/events", json=event).status_code)
    assert statuses == [503, 202] and load.lost == 0
    assert set(load.degraded) <= {(), ("events",)}


def test_a_replica_is_killed(service: Service, load: Load) -> None:
    def replicas() -> list[psutil.Process]:
        return listening(service.url)

    before = replicas()
    assert len(before) == 2
    with load.running():
        before[0].kill()
        load.wait_for(lambda: before[0].pid not in {process.pid for process in replicas()})
        load.wait_for_answers(50)
        load.wait_for(lambda: len(replicas()) == 2)
    # What was inside the killed process is lost, one request a client at most, and a client that is sent
    # there before it has ended.
    assert load.lost <= 2 * CLIENTS and before[0].pid not in {process.pid for process in replicas()}


def test_events_of_a_killed_replica_are_read_by_the_others(service: Service) -> None:
    acknowledged = []
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for number in range(30):
            event = {"event_id": str(number), "user_id": 88_888, "item_id": 7 + 10 * number}
            if client.post("/v1/events", json=event).status_code == 202:
                acknowledged.append(7 + 10 * number)
    listening(service.url)[0].kill()
    known: list[Any] = []

    def all_are_known() -> bool:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(base_url=service.url, timeout=60) as client,
        ):
            history = client.get("/v1/history?user_id=88888").json()
            known[:] = [event["item_id"] for event in history["events"]]
        return len(known) >= len(acknowledged)

    eventually(all_are_known, lambda: known)
    assert sorted(known) == sorted(acknowledged) and len(acknowledged) == 30


def test_a_missing_model_is_an_error(service: Service) -> None:
    async def ask() -> None:
        client = TritonClient(service.triton)
        try:
            with pytest.raises(TritonError):
                await client.infer("no such model", 1, {})
        finally:
            await client.close()

    asyncio.run(ask())
