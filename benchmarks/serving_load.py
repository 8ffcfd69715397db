"""The whole graph under load: latency of one client, throughput, and goodput at and beyond what can be
sustained.

    make demo && .venv/bin/python -m benchmarks.serving_load       # a quarter of an hour on 2 quiet cores

Fused and staged, beside a Ray Serve deployment that does nothing and a hand-written process that does the
same work (`benchmarks/handwritten.py`), one after the other in the same run.
Clients share the cores with what they ask.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from ray import serve

from benchmarks.harness import environment, write_result
from benchmarks.load import Load
from benchmarks.noop import NoOp
from passerelle.bundle import Bundle, open_bundle
from ray_cluster.demo import BUNDLE, REPOSITORY, RUN
from ray_cluster.local_ray import local_ray
from ray_cluster.publishing import published_version
from ray_cluster.service import Service, ServiceOptions
from serving.config import LiveEventsConfig, ServingConfig
from serving.graph import Topology
from serving.triton.ports import free_ports

OBJECTIVE_MS = 100.0
CLIENTS = (1, 2, 4, 8, 16)
SHARES = (0.5, 0.7, 0.8, 0.9, 1.0)
"""Arrival rates that are tried, as shares of the highest closed-loop throughput."""
SUSTAINED = 0.99
"""Share of the requests of a sustainable rate that are answered within the objective."""
BODIES = 2000


def main() -> None:
    """Measure everything and store one result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of each measurement (default %(default)s)"
    )
    seconds = parser.parse_args().seconds
    started, bundle = environment(), open_bundle(Path(BUNDLE))
    user_ids = bundle.user_ids.ids(np.random.default_rng(0).integers(len(bundle.user_ids), size=BODIES))
    bodies = tuple(json.dumps({"user_id": user_id, "k": 10}).encode() for user_id in user_ids)
    values: dict[str, Any] = {
        "objective_ms": OBJECTIVE_MS,
        "items": bundle.manifest.num_items,
        "users": bundle.manifest.num_users,
    }
    with _noop() as url:
        values["noop"] = _closed(
            Load(url, (b"",), path="/", method="GET", objective_ms=OBJECTIVE_MS), seconds
        )
    with _handwritten() as url:
        values["handwritten"] = _loaded(Load(url, bodies, objective_ms=OBJECTIVE_MS), seconds)
        answers = _items(url, bodies[:50])
    for topology in ("fused", "staged"):
        with _graph(bundle, topology) as url:
            same = sum(mine == theirs for mine, theirs in zip(_items(url, bodies[:50]), answers, strict=True))
            values[topology] = {
                **_loaded(Load(url, bodies, objective_ms=OBJECTIVE_MS), seconds),
                "same_items_as_handwritten": same / 50,
            }
            values[topology]["stages_ms"] = _stages(url, bodies)
    values["fused_p50_over_noop"] = values["fused"]["closed"]["1"]["p50_ms"] / values["noop"]["1"]["p50_ms"]
    for topology in ("fused", "staged"):
        values[f"{topology}_throughput_over_handwritten"] = (
            values[topology]["throughput_per_s"] / values["handwritten"]["throughput_per_s"]
        )
    write_result("serving_load", started, values)


def _closed(load: Load, seconds: float) -> dict[str, Any]:
    load.run(seconds=3.0, clients=4)  # connections, caches, the first shapes
    found = {}
    for clients in CLIENTS:
        found[str(clients)] = load.run(seconds=seconds, clients=clients)
        print(load.url, found[str(clients)], flush=True)
    return found


def _loaded(load: Load, seconds: float) -> dict[str, Any]:
    """Clients in turns, then arrivals at growing rates up to twice what is sustained."""
    closed = _closed(load, seconds)
    throughput = max(one["answered_per_s"] for one in closed.values())
    opened: list[dict[str, Any]] = []

    def arrive(rate: float) -> dict[str, Any]:
        opened.append(load.run(seconds=seconds, rate=rate))
        print(load.url, opened[-1], flush=True)
        return opened[-1]

    sustainable = 0.0
    for share in SHARES:
        found = arrive(share * throughput)
        if found["goodput_per_s"] * found["seconds"] >= SUSTAINED * found["requests"]:
            sustainable = found["rate_per_s"]
    overload = arrive(2 * sustainable) if sustainable else None
    peak = max(one["goodput_per_s"] for one in opened)
    return {
        "closed": closed,
        "throughput_per_s": throughput,
        "open": opened,
        "sustainable_per_s": sustainable,
        "peak_goodput_per_s": peak,
        "goodput_at_twice_over_peak": None if overload is None else overload["goodput_per_s"] / peak,
    }


@contextlib.contextmanager
def _noop() -> Iterator[str]:
    """A deployment that does nothing, behind Serve's proxy, which our graph does without."""
    (port,) = free_ports(1)
    with local_ray():
        serve.start(http_options={"port": port})
        serve.run(serve.deployment(name="noop")(NoOp).bind(), name="noop", route_prefix="/")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _handwritten() -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "benchmarks.handwritten", BUNDLE, RUN, str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command) as process:
        try:
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/openapi.json", timeout=1):
                    break
                assert process.poll() is None, "the hand-written process ended"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


@contextlib.contextmanager
def _graph(bundle: Bundle, topology: Topology) -> Iterator[str]:
    serving = ServingConfig(
        events=LiveEventsConfig(file=REPOSITORY.resolve() / "events-of-a-benchmark.sqlite")
    )
    with Service(
        bundle.path,
        REPOSITORY,
        published_version(bundle, REPOSITORY),
        ServiceOptions(topology=topology, serving=serving),
    ) as service:
        yield service.url
    for file in REPOSITORY.glob("events-of-a-benchmark.sqlite*"):
        file.unlink()


def _items(url: str, bodies: tuple[bytes, ...]) -> list[list[Any]]:
    with httpx.Client(base_url=url, headers={"content-type": "application/json"}) as client:
        answers = [client.post("/v1/recommend", content=body).raise_for_status().json() for body in bodies]
    return [[item["item_id"] for item in answer["items"]] for answer in answers]


def _stages(url: str, bodies: tuple[bytes, ...]) -> dict[str, dict[str, float]]:
    """Percentiles of each stage as answers tell of it, one client."""
    with httpx.Client(base_url=url, headers={"content-type": "application/json"}) as client:
        timings = [
            client.post("/v1/recommend", content=body).raise_for_status().json()["timings_ms"]
            for body in bodies[:500]
        ]
    return {
        stage: {
            f"p{level}_ms": round(float(np.percentile([one[stage] for one in timings], level)), 3)
            for level in (50, 95, 99)
        }
        for stage in timings[0]
    }


if __name__ == "__main__":
    main()
