"""The demo interrupted in the middle of training: it ends what it started, and waits for that."""

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import CHECKOUT, running


@pytest.mark.slow
@pytest.mark.parametrize(("number", "running_then"), [(signal.SIGINT, "raylet"), (signal.SIGTERM, "ray::")])
def test_an_interrupt_in_the_training_step_leaves_nothing(
    number: signal.Signals, running_then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSERELLE_DATA", str(CHECKOUT.parent / "shared" / "data"))
    with running("-m", "ray_cluster.demo", program=(sys.executable,), cwd=tmp_path) as demo:
        deadline = time.monotonic() + 90
        while not any(name.startswith(running_then) for name in demo.alive()):
            assert demo.process.poll() is None and time.monotonic() < deadline, demo.alive()
            time.sleep(0.2)
        assert demo.end(number, timeout_s=60) == 130
        assert not demo.alive()
