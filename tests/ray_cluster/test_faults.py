"""What breaks under load: Triton, the ranker, the event store, a replica.

Answers are right, or say what they did without.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from passerelle.bundle import RANKER, Bundle
from ray_cluster.service import APPLICATION, EVENTS_NAME, Service, ServiceOptions
from serving.triton.client import TritonClient, TritonError
from tests.support.waiting import eventually, eventually_async

NOW_MS = 1_700_000_000_000
CLIENTS = 4
ALLOWED = {200, 202, 429, 503}
ANSWERS_BEFORE_AND_AFTER = 40


@pytest.fixture(scope="module")
def service(bundle: Bundle, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two replicas over a repository of their own, watched as `passerelle serve` does."""
    own = tmp_path_factory.mktemp("faults") / "repository"
    shutil.copytree(repository, own, ignore=shutil.ignore_patterns(f"{EVENTS_NAME}*"))
    with Service(bundle.path, own, 1, ServiceOptions(replicas=2)) as running:
        threading.Thread(target=running.watch, daemon=True).start()
        yield running


@pytest.fixture(scope="module")
def staged(bundle: Bundle, repository: Path) -> Iterator[Service]:
    """A deployment a stage, each of two replicas."""
    with Service(bundle.path, repository, 1, ServiceOptions(topology="staged", replicas=2)) as running:
        yield running


class Load:
    """Clients that ask for known users all the time, and compare what comes with what should."""

    def __init__(self, url: str, bundle: Bundle) -> None:
        self._url = url
        context = {"timestamp_ms": NOW_MS}
        self._bodies = [
            {"user_id": user_id, "context": context} for user_id in bundle.reference().user_ids()[:8]
        ]
        with httpx.Client(base_url=url) as client:
            self._expected = [
                client.post("/v1/recommend", json=body).raise_for_status().json()["items"]
                for body in self._bodies
            ]
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.degraded: Counter[tuple[str, ...]] = Counter()
        self.lost = 0
        """Connections that ended without an answer."""
        self.wrong: list[Any] = []
        self.last_degraded_s = 0.0

    def _ask(self, number: int) -> None:
        client = httpx.Client(base_url=self._url, timeout=60)
        position = number
        while not self._stopped.is_set():
            position += 1
            which = position % len(self._bodies)
            try:
                answer = client.post("/v1/recommend", json=self._bodies[which])
            except httpx.TransportError:
                with self._lock:
                    self.lost += 1
                client.close()
                client = httpx.Client(base_url=self._url, timeout=60)
                continue
            self._note(answer, which)
        client.close()

    def _note(self, answer: httpx.Response, which: int) -> None:
        with self._lock:
            self.statuses[answer.status_code] += 1
            if answer.status_code != 200:
                return
            values = answer.json()
            self.degraded[tuple(values["degraded"])] += 1
            if values["degraded"]:
                self.last_degraded_s = time.monotonic()
            expected = self._expected[which]
            if "query_encoder" in values["degraded"]:
                right = values["fallback"] == "similar" and len(values["items"]) == len(expected)
            elif "ranker" in values["degraded"]:
                right = [item["sources"][0]["rank"] for item in values["items"]] == list(
                    range(1, len(expected) + 1)
                )
            else:
                right = values["fallback"] is None and _same(values["items"], expected)
            if not right:
                self.wrong.append(values)

    @contextlib.contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_answers(ANSWERS_BEFORE_AND_AFTER)
            yield self
            self.wait_for_answers(ANSWERS_BEFORE_AND_AFTER)
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
        assert set(self.statuses) <= ALLOWED and self.wrong == [], (self.statuses, self.wrong[:1])
        assert self.statuses[200] > 50

    def wait_for(self, condition: Callable[[], bool]) -> None:
        eventually(condition, lambda: (self.statuses, self.degraded), interval_s=0.05)

    def wait_for_answers(self, count: int) -> None:
        """Until as many more requests were answered in full or in part."""
        answered = self.statuses[200]
        eventually(lambda: self.statuses[200] >= answered + count, lambda: self.statuses)

    def is_whole_again(self) -> bool:
        """Nothing was left out for two seconds."""
        return time.monotonic() - self.last_degraded_s > 2.0


@pytest.fixture
def load(service: Service, bundle: Bundle) -> Load:
    return Load(service.url, bundle)


def _same(items: list[Any], expected: list[Any]) -> bool:
    """The same items in the same order; networks round otherwise when requests are merged into one."""
    scores = zip(items, expected, strict=True)
    return [item["item_id"] for item in items] == [item["item_id"] for item in expected] and all(
        abs(one["score"] - other["score"]) < 1e-5 for one, other in scores
    )


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
            history = client.get("/v1/users/88888/history").json()
            known[:] = [event["item_id"] for event in history["events"]]
        return len(known) >= len(acknowledged)

    eventually(all_are_known, lambda: known)
    assert sorted(known) == sorted(acknowledged) and len(acknowledged) == 30


def test_a_replica_of_each_stage_is_killed(staged: Service, bundle: Bundle) -> None:
    def replicas(stage: str) -> set[psutil.Process]:
        found = set()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"ServeReplica:{APPLICATION}:{stage}" in " ".join(process.cmdline()):
                    found.add(process)
        return found

    before = {stage: replicas(stage) for stage in ("lookup", "retrieval", "ranking", "ordering")}
    load = Load(staged.url, bundle)
    assert [len(processes) for processes in before.values()] == [2, 2, 2, 2]
    with load.running():
        for processes in before.values():
            min(processes, key=lambda process: process.pid).kill()
        load.wait_for(
            lambda: all(len(replicas(stage) - processes) == 1 for stage, processes in before.items())
        )
        load.wait_for_answers(50)
    assert load.lost == 0, "the replica that listens lives"


def test_a_missing_model_is_an_error(service: Service) -> None:
    async def ask() -> None:
        client = TritonClient(service.triton)
        try:
            with pytest.raises(TritonError):
                await client.infer("no such model", 1, {})
        finally:
            await client.close()

    asyncio.run(ask())
