"""The whole way with the wheel alone, in an empty environment outside the checkout: `make test-wheel`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_cluster.client import ServiceClient
from serving.triton.ports import free_ports
from tests.support.processes import running
from tests.support.raw_logs import write_raw_logs

INSTALL_S = 1500.0
SETTINGS = ("model.dim=32", "model.max_history=12", "training.max_epochs=5", "ranker.num_candidates=40")


@pytest.fixture(scope="module")
def passerelle(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of an environment that holds the wheel, its extras and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--upgrade-deps", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{wheel}[train,serve]"], check=True, timeout=INSTALL_S)
    (shipped,) = folder.glob("lib/python*/site-packages/ray_cluster/shipped/requirements")
    second_step = ["--no-deps", "--requirement", str(shipped / "torchrec-cpu.txt")]
    subprocess.run([*pip, *second_step], check=True, timeout=INSTALL_S)
    return folder / "bin" / "passerelle"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_from_raw_logs_to_an_answer(
    passerelle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def verb(*arguments: str) -> Any:
        print("$ passerelle", *arguments)
        done = subprocess.run(
            [str(passerelle), *arguments, "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    logs = write_raw_logs(tmp_path / "logs")
    verb("prepare", str(logs), "--out", "dataset")
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    verb("train", "sasrec", "--dataset", "dataset", "--out", "run", *sets)
    verb("train-ranker", "run")
    verb("export", "run", "--out", "bundle")
    verb("publish", "bundle")
    (port,) = free_ports(1)
    serve = ("serve", "bundle", "--port", str(port))
    with running(*serve, program=(str(passerelle),), cwd=tmp_path) as service:
        assert service.process.stdout is not None
        line = service.process.stdout.readline()
        assert line.startswith("curl "), service.process.stderr and service.process.stderr.read()
        with ServiceClient(f"http://127.0.0.1:{port}") as client:
            answer = client.recommend({"user_id": "customer-7", "k": 5})
        print(json.dumps(answer))
        assert len(answer["items"]) == 5 and answer["degraded"] == [] and answer["fallback"] is None
        assert service.end() == 0
        assert service.left_after() == []
