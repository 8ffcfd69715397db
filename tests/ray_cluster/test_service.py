"""The running service: the whole way over HTTP, both topologies, the
commands that ask it, and how it ends.
"""

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from passerelle.bundle import Bundle
from ray_cluster.service import APPLICATION, Service, ServiceOptions
from serving.config import load_serving_config
from serving.triton.ports import free_ports
from tests.support.load import Load
from tests.support.processes import run, running
from tests.support.request_fuzzer import requests
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def staged(bundle: Bundle, repository: Path, patient_config: Path) -> Iterator[Service]:
    """A deployment a stage, in this process."""
    options = ServiceOptions(topology="staged", serving=load_serving_config(patient_config))
    with Service(bundle.path, repository, 1, options) as service:
        yield service


def test_both_topologies_give_the_same_answers(service_url: str, staged: Service, bundle: Bundle) -> None:
    def answers(url: str) -> list[Any]:
        with httpx.Client(base_url=url) as client:
            requests = [
                {"user_id": user.user_id, "context": {"timestamp_ms": user.timestamp_ms}}
                for user in bundle.reference().users()
            ]
            requests += [
                {},
                {
                    "history": [7, 17, 18],
                    "k": 300,
                    "filters": [{"op": "equals", "column": "kind", "value": "book"}],
                },
            ]
            found = [
                client.post("/v1/recommend", json=request).raise_for_status().json() for request in requests
            ]
            found.append(client.post("/v1/similar", json={"item_id": 17}).raise_for_status().json())
        return [
            (answer["items"], answer.get("fallback"), answer.get("ignored_history"), answer["model_version"])
            for answer in found
        ]

    assert answers(service_url) == answers(staged.url)


@pytest.mark.parametrize("which", ["fused", "staged"])
def test_user_errors_keep_their_status_across_stages(service_url: str, staged: Service, which: str) -> None:
    with httpx.Client(base_url=service_url if which == "fused" else staged.url) as client:
        for path, body, status, message in (
            (
                "/v1/recommend",
                {"filters": [{"op": "equals", "column": "x", "value": 1}]},
                422,
                "column 'x' is not an item column",
            ),
            ("/v1/recommend", {"history": ["x"]}, 422, "history.0: item_id 'x'"),
            ("/v1/recommend", {"k": 301}, 422, "k: 301 is more than the 300 items"),
            ("/v1/similar", {"item_id": 8}, 404, "item_id 8: not in the catalogue of 300 items"),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == status and answer.json()["detail"][0]["msg"].startswith(
                (message, "filters.0: " + message)
            )


def test_long_histories_and_concurrent_requests(service_url: str) -> None:
    with httpx.Client(base_url=service_url) as client:
        answer = client.post(
            "/v1/recommend",
            json={
                "history": [7 + 10 * (position % 400) for position in range(10_000)],
                "k": 5,
                "exclude_seen": False,
            },
        )
        assert (
            answer.status_code == 200
            and answer.json()["ignored_history"] == 2_500
            and len(answer.json()["items"]) == 5
        )
        assert client.get("/readyz").json() == {
            "ready": True,
            "model_version": 1,
            "checks": {"networks": True, "events": True},
        }
        assert "passerelle_requests_total" in client.get("/metrics").text


@pytest.mark.parametrize("which", ["fused", "staged"])
def test_no_request_over_http_fails_the_service(service_url: str, staged: Service, which: str) -> None:
    with httpx.Client(base_url=service_url if which == "fused" else staged.url, timeout=20) as client:
        openapi = client.get("/openapi.json").json()
        for method, path, body, headers in requests(openapi, 800 if which == "fused" else 200, seed=3):
            answer = client.request(method, path, content=body, headers=headers)
            assert answer.status_code in (200, 202, 404, 405, 409, 413, 422, 503), (
                answer.status_code,
                path[:100],
                body[:300],
            )
            assert answer.status_code != 503 or b'"deadline_ms"' in body, (answer.text, body[:300])
        assert client.get("/readyz").status_code == 200


def test_recommend_and_similar_print_titles(service_url: str) -> None:
    status, stdout, stderr = run("recommend", "--user", "1003", "-k", "3", "--url", service_url)
    assert (
        status == 0
        and stdout.count("Title № ") == 3
        and stdout.count("personal #") == 3
        and "total " in stderr
    )
    status, stdout, stderr = run("recommend", "--history", "7, 17,18", "-k", "2", "--url", service_url)
    assert (
        status == 0
        and stdout.count("Title № ") == 2
        and "1 ids of the history are not in the catalogue" in stderr
    )
    status, stdout, _ = run("similar", "--item", "17", "-k", "3", "--url", service_url)
    assert status == 0 and stdout.count("similar #") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("recommend", "--user", "1003", "-k", "301"),
            "passerelle: k: 301 is more than the 300 items of the catalogue\n",
        ),
        (("similar", "--item", "8"), "passerelle: item_id '8': not in the catalogue of 300 items\n"),
        (
            ("recommend", "--user", "1003", "--context", "device"),
            "passerelle: --context device: write it as name=value\n",
        ),
        (
            ("recommend", "--user", "1003", "--context", "device=3"),
            "passerelle: context.features: the model does not read device; it reads none\n",
        ),
        (
            ("recommend", "--history", "7", "--user-feature", "tags=['a']"),
            "passerelle: user_features: the model does not read tags; it reads none\n",
        ),
        (
            ("recommend", "--user", "ann"),
            "passerelle: user_id: user_id 'ann': this catalogue's ids are integers\n",
        ),
    ],
)
def test_refusals_are_one_line(service_url: str, arguments: tuple[str, ...], message: str) -> None:
    assert run(*arguments, "--url", service_url) == (1, "", message)


def test_no_service() -> None:
    status, stdout, stderr = run("recommend", "--user", "1", "--url", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (
        status == 1
        and not stdout
        and stderr.startswith("passerelle: no service answers at http://127.0.0.1:")
        and stderr.count("\n") == 1
    )


def test_busy_port(service_url: str, bundle: Bundle, repository: Path) -> None:
    port = service_url.rpartition(":")[2]
    status, stdout, stderr = run("serve", str(bundle.path), "--repository", str(repository), "--port", port)
    assert status == 1 and not stdout
    assert stderr.startswith(
        f"passerelle: port {port} on 127.0.0.1 is held by ray::ServeReplica:passerelle:ingress (pid "
    )
    assert stderr.endswith("stop it or choose another --port\n")


@pytest.mark.slow
def test_an_interrupted_start_leaves_nothing(bundle: Bundle, repository: Path) -> None:
    with running(
        "serve", str(bundle.path), "--repository", str(repository), "--port", str(free_ports(1)[0])
    ) as command:
        eventually(lambda: "raylet" in command.alive() or command.process.poll() is not None)
        assert command.process.poll() is None
        assert command.end(signal.SIGTERM) != 0
        assert not command.left_after()


def test_a_refusal_of_triton_is_reported_and_leaves_nothing(
    bundle: Bundle, repository: Path, tmp_path: Path
) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    config = models / "ranker" / "config.pbtxt"
    config.write_text(config.read_text().replace("[ 17 ]", "[ 16 ]"))
    with running(
        "serve", str(bundle.path), "--repository", str(models), "--port", str(free_ports(1)[0])
    ) as command:
        stdout, stderr = command.process.communicate(timeout=120)
        assert command.process.returncode == 1 and not stdout and stderr.count("\n") == 1
        assert stderr.startswith(f"passerelle: Triton cannot serve version 1 of {models}: loading ranker ")
        assert "input features has dims [-1, 17], config.pbtxt says [-1, 16]" in stderr
        assert not command.left_after()


@pytest.mark.slow
def test_a_replica_of_each_stage_is_killed(bundle: Bundle, repository: Path) -> None:
    def replicas(stage: str) -> set[psutil.Process]:
        found = set()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"ServeReplica:{APPLICATION}:{stage}" in " ".join(process.cmdline()):
                    found.add(process)
        return found

    with Service(bundle.path, repository, 1, ServiceOptions(topology="staged", replicas=2)) as service:
        before = {stage: replicas(stage) for stage in ("lookup", "retrieval", "ranking", "ordering")}
        load = Load(service.url, bundle)
        assert [len(processes) for processes in before.values()] == [2, 2, 2, 2]
        with load.running():
            for processes in before.values():
                min(processes, key=lambda process: process.pid).kill()
            load.wait_for(
                lambda: all(len(replicas(stage) - processes) == 1 for stage, processes in before.items())
            )
            load.wait_for_answers(50)
        assert load.lost == 0, "the replica that listens lives"
