"""The command line in this process; one dataset, one published bundle and one running
service for all tests of this folder.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from passerelle.bundle import Bundle
from passerelle.dataset import Dataset
from ray_cluster.cli.main import main
from serving.triton.ports import free_ports
from tests.support.datasets import SMALL_RECIPE, planted_dataset
from tests.support.processes import run, running

Cli = Callable[..., tuple[int, str, str]]
SMALL = [argument for override in SMALL_RECIPE for argument in ("--set", override)]
SHORT = [*SMALL, "--set", "training.max_epochs=3"]


def call_main(*arguments: str | Path) -> int:
    """Call `passerelle` in this process, and give its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["passerelle", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def parsed(answer: tuple[int, str, str]) -> dict[str, Any]:
    """The one JSON object on stdout of a verb that ended well."""
    status, out, err = answer
    assert status == 0, err
    assert out.count("\n") == 1
    values: dict[str, Any] = json.loads(out)
    return values


def mistake(answer: tuple[int, str, str], status: int = 1) -> str:
    """The message of a verb that failed as it should: status, nothing on stdout, and for a
    mistake in the input one line.
    """
    assert answer[:2] == (status, "")
    assert "Traceback" not in answer[2]
    if status == 1:
        assert answer[2].startswith("passerelle: ")
        assert answer[2].count("\n") == 1
    return answer[2]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call `passerelle` in this process: status, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = call_main(*arguments)
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """240 users, 120 items.

    Do not write into it.
    """
    return planted_dataset(tmp_path_factory.mktemp("planted") / "dataset")


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs; tests that change it copy it first."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert call_main("train", "bert4rec", "--dataset", dataset.path, "--out", path, "--no-ray", *SHORT) == 0
    return path


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that the test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def publication(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `passerelle publish --json` said about the first bundle of an absent repository."""
    repository = tmp_path_factory.mktemp("published") / "models"
    status, stdout, stderr = run("publish", str(bundle.path), "--repository", str(repository), "--json")
    assert status == 0, stderr
    said: dict[str, Any] = json.loads(stdout)
    return said


@pytest.fixture(scope="session")
def repository(publication: dict[str, Any]) -> Path:
    """The repository of `publication`."""
    return Path(publication["repository"])


@pytest.fixture(scope="session")
def patient_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a service that answers every request in full, however busy the machine is."""
    path = tmp_path_factory.mktemp("patient") / "serving.toml"
    path.write_text(
        "[limits]\nmax_expected_ms = 60_000\nmax_large_bytes_per_s = 1_000_000_000\ndeadline_ms = 60_000\n"
        "[events]\ntimeout_ms = 10_000\n"
    )
    return path


@pytest.fixture(scope="package")
def service_url(bundle: Bundle, repository: Path, patient_config: Path) -> Iterator[str]:
    """`passerelle serve` in a process of its own; when the tests of this folder are over,
    SIGTERM must leave nothing behind.
    """
    port = free_ports(1)[0]
    with running(
        *("serve", str(bundle.path), "--repository", str(repository), "--port", str(port)),
        *("--config", str(patient_config)),
    ) as command:
        assert command.process.stdout is not None
        line = command.process.stdout.readline()
        assert line.startswith(f"curl -s http://127.0.0.1:{port}/v1/recommend "), (
            command.process.communicate()
        )
        assert {"tritonserver", "raylet"} <= set(command.alive())
        yield f"http://127.0.0.1:{port}"
        assert command.end() == 0, command.process.stderr and command.process.stderr.read()
        assert not command.left_after()
