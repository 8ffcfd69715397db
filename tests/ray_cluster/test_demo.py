"""The demo interrupted in the middle of training: it ends what it started, and waits for that."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.processes import CHECKOUT, running
from tests.support.waiting import eventually


@pytest.mark.slow
@pytest.mark.parametrize(("number", "running_then"), [(signal.SIGINT, "raylet"), (signal.SIGTERM, "ray::")])
def test_an_interrupt_in_the_training_step_leaves_nothing(
    number: signal.Signals, running_then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PASSERELLE_DATA", os.environ.get("PASSERELLE_DATA", str(CHECKOUT.parent / "shared" / "data"))
    )
    with running("-m", "ray_cluster.demo", program=(sys.executable,), cwd=tmp_path) as demo:
        eventually(
            lambda: (
                any(name.startswith(running_then) for name in demo.alive()) or demo.process.poll() is not None
            ),
            demo.alive,
            timeout_s=180,
        )
        assert demo.process.poll() is None
        assert demo.end(number, timeout_s=60) == 130
        assert not demo.alive()
