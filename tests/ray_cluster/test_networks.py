"""Triton crashes now and then: it is started again, and says why when that does not help."""

import asyncio
import logging
import shutil
from pathlib import Path

import psutil
import pytest

from passerelle.errors import UserError
from ray_cluster.networks import Networks
from serving.triton_client import TritonClient


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


def test_what_is_wrong_with_a_model_is_told_at_once(repository: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    (models / "ranker" / "1" / "model.onnx").write_bytes(b"")
    with Networks(models, 1) as networks, pytest.raises(UserError, match=r"Triton cannot serve version 1 of .*not a valid ONNX model"):
        networks.ensure()


def test_nobody_answers_elsewhere(repository: Path) -> None:
    with Networks(repository, 1, "127.0.0.1:9") as networks, pytest.raises(UserError, match=r"127\.0\.0\.1:9: UNAVAILABLE"):
        networks.ensure()
