"""The main job, step by step: what `make demo` does, each command timed, then requests one at a time over
HTTP.

    .venv/bin/python -m benchmarks.main_job

About five minutes on 2 cores.
A Ray Serve deployment that does nothing is asked in the same run, as the ceiling.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from ray import serve

from benchmarks.harness import environment, latency_summary, write_result
from benchmarks.noop import NoOp
from passerelle.bundle import Bundle, open_bundle
from passerelle.manifest import open_manifest
from ray_cluster.demo import BUNDLE, REPOSITORY, ROOT, STEPS
from ray_cluster.local_ray import local_ray
from ray_cluster.publishing import published_version
from ray_cluster.service import Service
from serving.triton.ports import free_ports
from training.runs.run import RunManifest

WARM_UP_REQUESTS, REQUESTS = 50, 1000


def main() -> None:
    """Run the steps, then the requests, and store one result file."""
    started = environment()
    shutil.rmtree(ROOT, ignore_errors=True)
    steps_s, reports = {}, {}
    for step in STEPS:
        steps_s[step[0]], reports[step[0]] = _timed_command(*step)
    bundle = open_bundle(Path(BUNDLE))
    values = {"step_seconds": steps_s, "quality": reports["prepare"]["quality"], **_serve(bundle)}
    run = open_manifest(ROOT / "run", RunManifest)
    values |= {
        "training": {
            "epochs": run.epochs,
            "validation": run.validation,
            "config": run.config.model_dump(mode="json"),
        }
    }
    values |= {"offline": bundle.manifest.offline_metrics, "parity": bundle.manifest.parity}
    write_result("main_job", started, values)


def _timed_command(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Wall time of one command, process start and imports included, and its JSON report."""
    print(f"$ passerelle {' '.join(arguments)}", file=sys.stderr)
    command = [str(Path(sys.executable).with_name("passerelle")), *arguments, "--json"]
    started_s = time.perf_counter()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return round(time.perf_counter() - started_s, 2), json.loads(output)


def _serve(bundle: Bundle) -> dict[str, Any]:
    """Time until `/readyz`, then latencies of one client of the graph, and of the deployment that does
    nothing.
    """
    user_ids = bundle.user_ids.ids(
        np.random.default_rng(0).integers(len(bundle.user_ids), size=WARM_UP_REQUESTS + REQUESTS)
    )
    stages: list[dict[str, float]] = []
    started_s = time.perf_counter()
    with (
        Service(bundle.path, REPOSITORY, published_version(bundle, REPOSITORY)) as service,
        httpx.Client(base_url=service.url) as client,
    ):
        ready_s = time.perf_counter() - started_s

        def recommend(position: int) -> None:
            answer = (
                client.post("/v1/recommend", json={"user_id": user_ids[position], "k": 10})
                .raise_for_status()
                .json()
            )
            assert len(answer["items"]) == 10, answer
            stages.append(answer["timings_ms"])

        requests = latency_summary(_latencies_ms(recommend))
    noop = _noop()
    stage_ms = {
        name: latency_summary([stage[name] for stage in stages[WARM_UP_REQUESTS:]]) for name in stages[0]
    }
    ratio = requests["p50_ms"] / noop["p50_ms"]
    return {
        "ready_seconds": round(ready_s, 2),
        "recommend": requests,
        "stages": stage_ms,
        "noop": noop,
        "p50_over_noop": round(ratio, 2),
    }


def _noop() -> dict[str, float]:
    """Latencies of one client of a deployment that does nothing, behind Serve's HTTP proxy, which our graph
    does without.
    """
    port = free_ports(1)[0]
    with local_ray(), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        serve.start(http_options={"port": port})
        serve.run(serve.deployment(name="noop")(NoOp).bind(), name="noop", route_prefix="/")
        return latency_summary(_latencies_ms(lambda _: client.get("/").raise_for_status()))


def _latencies_ms(call: Callable[[int], object]) -> list[float]:
    """Latencies of `REQUESTS` calls, one after the other, after the warm-up."""
    latencies_ms = []
    for position in range(WARM_UP_REQUESTS + REQUESTS):
        started_s = time.perf_counter()
        call(position)
        latencies_ms.append(1e3 * (time.perf_counter() - started_s))
    return latencies_ms[WARM_UP_REQUESTS:]


if __name__ == "__main__":
    main()
