"""Ctrl-C and SIGTERM while training: one word, nothing left running, and a run that can go on."""

import signal
from pathlib import Path

import pytest

from passerelle.dataset import Dataset
from tests.ray_cluster.conftest import SMALL, Cli, mistake, parsed
from tests.support.processes import Command, running
from tests.support.waiting import eventually

ENDLESS = ["--set", "training.max_epochs=100000", "--set", "training.patience=100000"]


def interrupt(command: Command, number: signal.Signals, run: Path) -> None:
    """Send a signal once the run has a checkpoint: the command must say one word and end with 130."""
    checkpoint = run / "checkpoints" / "last.ckpt"
    eventually(lambda: checkpoint.exists() or command.process.poll() is not None, timeout_s=180)
    command.process.send_signal(number)
    out, err = command.process.communicate(timeout=120)
    assert (command.process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1] == "passerelle: interrupted"
    assert "Traceback" not in err


def test_ctrl_c_while_training_leaves_a_run_that_can_go_on(
    cli: Cli, dataset: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [
        "train",
        "bert4rec",
        "--dataset",
        str(dataset.path),
        "--out",
        str(run),
        "--no-ray",
        "--json",
        *SMALL,
    ]
    with running(*arguments, *ENDLESS) as command:
        interrupt(command, signal.SIGINT, run)
    assert "training has not ended: continue it with `passerelle train --resume`" in mistake(
        cli("evaluate", run)
    )
    done = len((run / "history.jsonl").read_text().splitlines())
    more = ["--resume", "--set", f"training.max_epochs={done + 2}", "--set", "training.patience=100000"]
    assert parsed(cli(*arguments, *more))["epochs"] == done + 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_training_on_ray_leaves_nothing_running(
    dataset: Dataset, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with running(
        "train", "bert4rec", "--dataset", str(dataset.path), "--out", str(run), *SMALL, *ENDLESS
    ) as command:
        interrupt(command, number, run)
        assert not command.left_after()
