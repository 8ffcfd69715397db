"""Triton crashes now and then: it is started again, and says why when that does not help."""

import asyncio
import logging
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from passerelle.errors import UserError
from ray_cluster.networks import Networks
from serving.triton.client import TritonClient


def triton() -> psutil.Process:
    """The server that this process has started."""
    return next(child for child in psutil.Process().children() if child.name() == "tritonserver")


async def ready(address: str) -> list[bool]:
    client = TritonClient(address)
    try:
        return [await client.ready(model, 1) for model in ("query_encoder", "ranker")]
    finally:
        await client.close()


def test_a_crashed_triton_is_started_again(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Networks(repository, 1) as networks:
        networks.ensure()
        assert asyncio.run(ready(networks.address)) == [True, True] and not networks.ended
        first = triton()
        first.kill()
        while not networks.ended:
            pass
        assert asyncio.run(ready(networks.address)) == [False, False]
        with caplog.at_level(logging.WARNING):
            networks.ensure()
        assert asyncio.run(ready(networks.address)) == [True, True] and triton() != first
        assert "Triton has ended and is started again: Triton ended with status -9" in caplog.text
        with Networks(repository, 1, networks.address) as elsewhere:
            elsewhere.ensure()
            assert not elsewhere.ended
        last = triton()
    assert not last.is_running()


def test_a_triton_whose_end_cannot_be_seen_yet_is_started_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that crashes closes its connections before it can be waited for; here it
    takes some tenths of a second.
    """
    load, poll = TritonClient.load, subprocess.Popen.poll
    killed_s: list[float] = []

    async def crash_first(*arguments: Any) -> None:
        if not killed_s:
            triton().kill()
            killed_s.append(time.monotonic())
        await load(*arguments)

    def late(process: subprocess.Popen[Any]) -> int | None:
        return process.returncode if killed_s and time.monotonic() < killed_s[0] + 0.3 else poll(process)

    monkeypatch.setattr(TritonClient, "load", crash_first)
    monkeypatch.setattr(subprocess.Popen, "poll", late)
    with Networks(repository, 1) as networks:
        networks.ensure()
        assert killed_s and asyncio.run(ready(networks.address)) == [True, True]


def test_a_failed_restart_is_tried_again(repository: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    with Networks(models, 1) as networks:
        networks.ensure()
        models.rename(tmp_path / "elsewhere")
        triton().kill()
        while not networks.ended:
            pass
        for _ in range(2):
            with pytest.raises(UserError, match="no such model repository"):
                networks.ensure()
        (tmp_path / "elsewhere").rename(models)
        networks.ensure()
        assert asyncio.run(ready(networks.address)) == [True, True]


def test_a_broken_model_is_reported_at_once(repository: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    (models / "ranker" / "1" / "model.onnx").write_bytes(b"")
    with (
        Networks(models, 1) as networks,
        pytest.raises(UserError, match=r"Triton cannot serve version 1 of .*not a valid ONNX model"),
    ):
        networks.ensure()


def test_an_address_without_triton_is_an_error(repository: Path) -> None:
    with (
        Networks(repository, 1, "127.0.0.1:9") as networks,
        pytest.raises(UserError, match=r"127\.0\.0\.1:9: UNAVAILABLE"),
    ):
        networks.ensure()


def test_any_path_of_the_repository_and_any_proxy(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's Python backend puts the path into a line of the shell, and gRPC asks the proxy it is told."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    odd = tmp_path / "with space & é; 'quoted' (\"twice\")?"
    shutil.copytree(repository, odd, ignore=shutil.ignore_patterns("events.sqlite*"))
    before = set(Path(tempfile.gettempdir()).glob("passerelle-triton-*"))
    with Networks(odd, 1) as networks:
        networks.ensure()
        assert asyncio.run(ready(networks.address)) == [True, True]
    assert set(Path(tempfile.gettempdir()).glob("passerelle-triton-*")) == before
