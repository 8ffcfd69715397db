"""Load on an HTTP server from a process of its own: clients in turns (closed loop), or arrivals by chance
(open loop).

In an open loop a request is sent when it is due, whether or not others have been answered, and its latency
counts from when it was due.
"""

import asyncio
import multiprocessing
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

PERCENTILES = (50.0, 95.0, 99.0, 99.9)
TIMEOUT_S = 10.0


@dataclass
class Outcomes:
    """The outcome of requests: latencies of those answered 200, and counts of the other statuses."""

    latencies_ms: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    late_sends_ms: list[float] = field(default_factory=list)
    """Delays of requests after they were due: a client that cannot keep up would flatter the server.
    """

    def summary(self, seconds: float, objective_ms: float) -> dict[str, Any]:
        """Percentiles of latency, throughput, and goodput: answers within the objective, a second."""
        values = np.asarray(self.latencies_ms or [np.nan])
        good = int(np.count_nonzero(values <= objective_ms))
        return {
            "requests": len(self.latencies_ms) + sum(self.others.values()),
            "answered_per_s": round(len(self.latencies_ms) / seconds, 1),
            "goodput_per_s": round(good / seconds, 1),
            **{f"p{level:g}_ms": round(float(np.percentile(values, level)), 2) for level in PERCENTILES},
            "max_ms": round(float(values.max()), 2),
            "others": dict(self.others),
            "degraded": self.degraded,
            "late_sends_p99_ms": round(float(np.percentile(self.late_sends_ms or [0.0], 99)), 2),
        }


class Connection:
    """One HTTP/1.1 connection, kept open."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [
                int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            ]
            body = (
                await reader.readexactly(lengths[0]) if lengths else await reader.readuntil(b"0\r\n\r\n")
            )  # in chunks
            return int(head[9:12]), body
        except BaseException:
            writer.close()
            self._streams = None
            raise


@dataclass(frozen=True)
class Load:
    """The requests of a load test."""

    url: str
    bodies: tuple[bytes, ...]
    """Sent in turns."""
    path: str = "/v1/recommend"
    method: str = "POST"
    objective_ms: float = 100.0
    seed: int = 0

    def run(self, *, seconds: float, clients: int | None = None, rate: float | None = None) -> dict[str, Any]:
        """Load for so long, by `clients` that each wait for their answer, or by `rate` arrivals a second;
        from another process.
        """
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            outcomes, took_s = pool.apply(_run, (self, seconds, clients, rate))
        summary: dict[str, Any] = outcomes.summary(took_s, self.objective_ms)
        return {
            "clients": clients,
            "rate_per_s": None if rate is None else round(rate, 1),
            "seconds": round(took_s, 1),
            **summary,
        }


def _run(load: Load, seconds: float, clients: int | None, rate: float | None) -> tuple[Outcomes, float]:
    import uvloop  # what serious clients use; only here, in a process that loads

    return uvloop.run(
        _closed(load, seconds, clients) if clients is not None else _open(load, seconds, float(rate or 0))
    )


def _requests(load: Load) -> list[bytes]:
    target = urlsplit(load.url)
    head = (
        f"{load.method} {load.path} HTTP/1.1\r\nhost: {target.netloc}\r\n"
        "content-type: application/json\r\ncontent-length: "
    )
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in load.bodies]


async def _one(connection: Connection, request: bytes, due: float, outcomes: Outcomes) -> None:
    try:
        status, body = await asyncio.wait_for(connection.ask(request), TIMEOUT_S)
    except (OSError, EOFError, asyncio.IncompleteReadError):
        outcomes.others["connection"] += 1
        return
    except TimeoutError:
        outcomes.others["timeout"] += 1
        return
    if status != 200:
        outcomes.others[str(status)] += 1
        return
    outcomes.latencies_ms.append(1e3 * (time.perf_counter() - due))
    outcomes.degraded += b'"degraded":["' in body


async def _closed(load: Load, seconds: float, clients: int) -> tuple[Outcomes, float]:
    target, requests, outcomes = urlsplit(load.url), _requests(load), Outcomes()
    begun = time.perf_counter()

    async def client(number: int) -> None:
        connection, index = Connection(str(target.hostname), int(target.port or 80)), number
        while time.perf_counter() - begun < seconds:
            await _one(connection, requests[index % len(requests)], time.perf_counter(), outcomes)
            index += clients

    await asyncio.gather(*map(client, range(clients)))
    return outcomes, time.perf_counter() - begun


async def _open(load: Load, seconds: float, rate: float) -> tuple[Outcomes, float]:
    target, requests, outcomes = urlsplit(load.url), _requests(load), Outcomes()
    idle: list[Connection] = []
    running: set[asyncio.Task[None]] = set()
    due_S = np.cumsum(np.random.default_rng(load.seed).exponential(1 / rate, size=int(rate * seconds)))
    begun = time.perf_counter()

    async def send(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else Connection(str(target.hostname), int(target.port or 80))
        outcomes.late_sends_ms.append(1e3 * (time.perf_counter() - due))
        await _one(connection, request, due, outcomes)
        idle.append(connection)

    for index, after in enumerate(due_S):
        due = begun + float(after)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(send(requests[index % len(requests)], due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return outcomes, time.perf_counter() - begun
