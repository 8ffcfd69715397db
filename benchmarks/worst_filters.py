"""The dearest filters that a body can hold, and what other requests notice of them.

    make demo && .venv/bin/python -m benchmarks.worst_filters       # five minutes on 2 quiet cores

The demo's model, with offers that have a place, a category and times.
One client sends the same dear body again and again, while another one asks for ordinary recommendations.
It waits a little after each answer, as it would else take the cores from the service by sending alone.
A request with a short deadline shows what goes on after it: the replica's processor time.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet

from benchmarks.harness import environment, latency_summary, write_result
from benchmarks.load import Load
from passerelle.bundle import Bundle, open_bundle
from ray_cluster.demo import BUNDLE, REPOSITORY
from ray_cluster.publishing import published_version
from ray_cluster.service import Service, ServiceOptions
from serving.config import LiveEventsConfig, ServingConfig
from serving.eligibility_config import Offers

NUM_OFFERS, NUM_CATEGORIES, BODY_BYTES = 500_000, 1000, 2_000_000
PAUSE_S, IDLE_S = 0.05, 3.0


def write_offers(bundle: Bundle, path: Path) -> Path:
    """Writes offers of the bundle's items, at random places in and around France."""
    rng = np.random.default_rng(0)
    places = [rng.uniform(42, 51, NUM_OFFERS), rng.uniform(-4, 8, NUM_OFFERS)]
    table = pa.table(
        {
            "offer_id": np.arange(NUM_OFFERS),
            "item_id": bundle.items["item_id"].take(
                pa.array(rng.integers(len(bundle.items), size=NUM_OFFERS))
            ),
            "place": pa.StructArray.from_arrays([pa.array(one) for one in places], ["latitude", "longitude"]),
            "price": rng.uniform(1, 100, NUM_OFFERS),
            "category": pa.array([f"c{one}" for one in rng.integers(NUM_CATEGORIES, size=NUM_OFFERS)]),
            "starts": pa.array(rng.integers(0, 2**40, NUM_OFFERS), pa.timestamp("ms")),
        }
    )
    pa.parquet.write_table(table, path)
    return path


def dear_filters() -> dict[str, list[dict[str, Any]]]:
    """Filters by name, each as many as a body may hold or more, whether the service takes them or not."""
    near = {"op": "within", "column": "offer.place", "latitude": 46.5, "longitude": 2.0, "radius_km": 20_000}
    radii = {f"c{one}": 400.0 for one in range(NUM_CATEGORIES)}
    by_category = {**near, "radius_km": 1, "radius_by": {"column": "offer.category", "radii_km": radii}}
    price = {"op": "range", "column": "offer.price", "min": 0.5}
    one_of = {"op": "in", "column": "offer.category", "values": [f"c{one}" for one in range(10_000)]}
    return {
        "radii": [{"op": "or", "conditions": [by_category] * 3}] * 40,
        "20 x radii": [by_category] * 20,
        "world": [near] * 100,
        "ranges": [{"op": "and", "conditions": [price] * 99}] * 10,
        "values": [one_of] * 2,
        "many values": [{**one_of, "values": one_of["values"] * 10}] * 2,  # type: ignore[operator]
        "deep": [_nested(price, 40)] * 20,
        "too deep": [_nested(price, 60_000)],
        "too many": [price] * 30_000,
    }


def _nested(condition: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(min(depth, 190)):
        condition = {"op": "not", "condition": condition}
    return condition


def attack(url: str, body: bytes, until: threading.Event, found: list[tuple[int, float]]) -> None:
    """Sends a body again and again, and notes statuses and milliseconds."""
    with httpx.Client(base_url=url, timeout=30, headers={"content-type": "application/json"}) as client:
        while not until.is_set():
            begun_s = time.perf_counter()
            status = client.post("/v1/recommend", content=body).status_code
            found.append((status, 1e3 * (time.perf_counter() - begun_s)))
            until.wait(PAUSE_S)


def busy_s() -> float:
    """Returns the processor time of the replicas of this process's service."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(one.cpu_times()[:2]) for one in children if "ServeReplica" in " ".join(one.cmdline()))


def main() -> None:
    """Measure every kind of filter and store one result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load (default %(default)s)")
    seconds = parser.parse_args().seconds
    started, bundle = environment(), open_bundle(Path(BUNDLE))
    users = bundle.user_ids.ids(np.random.default_rng(0).integers(len(bundle.user_ids), size=500))
    ordinary = tuple(json.dumps({"user_id": user_id, "k": 10}).encode() for user_id in users)
    with tempfile.TemporaryDirectory() as scratch:
        offers = Offers(file=write_offers(bundle, Path(scratch) / "offers.parquet"), price_column="price")
        events = LiveEventsConfig(file=Path(scratch) / "events.sqlite")
        options = ServiceOptions(serving=ServingConfig(offers=offers, events=events))
        with Service(bundle.path, REPOSITORY, published_version(bundle, REPOSITORY), options) as service:
            values = measure(service.url, ordinary, seconds)
    write_result("worst_filters", started, {"offers": NUM_OFFERS, "model": bundle.manifest.model, **values})


def measure(url: str, ordinary: tuple[bytes, ...], seconds: float) -> dict[str, Any]:
    """Ordinary requests alone, then beside each kind of dear filters."""
    load = Load(url, ordinary)
    load.run(seconds=3.0, clients=2)
    values: dict[str, Any] = {"alone": load.run(seconds=seconds, clients=1), "filters": {}}
    for name, filters in dear_filters().items():
        body = json.dumps({"user_id": 1, "k": 10, "filters": filters})[:BODY_BYTES].encode()
        until, found = threading.Event(), list[tuple[int, float]]()
        attacker = threading.Thread(target=attack, args=(url, body, until, found))
        attacker.start()
        others = load.run(seconds=seconds, clients=1)
        until.set()
        attacker.join()
        values["filters"][name] = {
            "bytes": len(body),
            "statuses": sorted({status for status, _ in found}),
            "latency": latency_summary([latency_ms for _, latency_ms in found]),
            "others_p50_ms": others["p50_ms"],
            "others_p99_ms": others["p99_ms"],
            "others_p99_over_alone": others["p99_ms"] / values["alone"]["p99_ms"],
            "busy_s_after_deadline": after_deadline(url, filters),
        }
        print(name, values["filters"][name], flush=True)
    return values


def after_deadline(url: str, filters: list[dict[str, Any]]) -> float:
    """Returns the processor time that a replica spends after the deadlines of eight requests at once."""
    body = {"user_id": 1, "k": 10, "deadline_ms": 50, "filters": filters}
    with httpx.Client(base_url=url, timeout=30) as client:
        for _ in range(8):
            client.post("/v1/recommend", json=body)
    before_s = busy_s()
    time.sleep(IDLE_S)
    return round(busy_s() - before_s, 3)


if __name__ == "__main__":
    main()
