"""kill -9 at any step, and the run continued is the run undisturbed; and training once more on train and validation."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import make_split
from tests.datasets import small_recipe
from training.batches import EpochBatches
from training.config import RunConfig
from training.evaluation import evaluate, load_run
from training.fit import fit, train_in_process
from training.ranker import train_ranker
from training.run import BEST, LAST, RunManifest, open_run, plan_run, refit_config, start_run
from training.sequence_model import MONITOR

EPOCHS = 3
SMALL_STEPS = ("batches.token_budget=256", "training.checkpoint_every_steps=2", f"training.max_epochs={EPOCHS}", "model.dropout=0.2")


class Killer(pl.Callback):
    """Kills the process right after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(dataset: Dataset, path: Path, config: RunConfig, step: int) -> int:
    """The signal that a process of its own died of; it continues the run where there is one."""
    child = os.fork()
    if child == 0:
        try:
            start_run(path, plan_run(path, "bert4rec", dataset, config, resume=path.exists()))
            fit(dataset, config, path, resume=(path / LAST).exists(), callbacks=[Killer(step)])
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def train(dataset: Dataset, path: Path, config: RunConfig, **options: Any) -> RunManifest:
    return train_in_process("bert4rec", dataset, config, path, **options)


def history(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def checkpoint(path: Path, name: str = LAST) -> dict[str, Any]:
    values: dict[str, Any] = torch.load(path / name, weights_only=True)
    return values


@pytest.mark.parametrize("overrides", [(), ("objective.kind=causal", "model.time_bias=true")], ids=["bert4rec", "sasrec"])
def test_killed_at_many_steps_ends_as_undisturbed(dataset: Dataset, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Before the first checkpoint, right after one, between two, at an epoch's last step, and twice in one epoch; bit by bit."""
    config = small_recipe(*SMALL_STEPS, *overrides)
    steps = len(EpochBatches(dataset, make_split(dataset, config.split), config, epoch=0))
    assert steps >= 8
    train(dataset, tmp_path / "alone", config)
    for step in (1, 2, 5, steps, steps + 3, steps + 4, 2 * steps + 1, 3 * steps - 1):
        assert train_and_die(dataset, tmp_path / "killed", config, step) == signal.SIGKILL
    manifest = train(dataset, tmp_path / "killed", config, resume=True)
    assert manifest.epochs == EPOCHS
    assert history(tmp_path / "killed") == history(tmp_path / "alone")
    for name in (LAST, BEST):
        ours, theirs = (checkpoint(tmp_path / run, name) for run in ("killed", "alone"))
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        assert all(torch.equal(ours["state_dict"][key], theirs["state_dict"][key]) for key in theirs["state_dict"])


def test_a_refit_sees_validation_events_and_trains_as_long_as_they_chose(dataset: Dataset, tmp_path: Path) -> None:
    config = small_recipe()
    chosen = train(dataset, tmp_path / "run", config)
    again = train(dataset, tmp_path / "refit", refit_config(chosen), refit_of="the run")
    assert (again.epochs, again.best_epoch, again.validation) == (chosen.best_epoch, chosen.best_epoch, {})
    assert again.trained_on == f"train and validation, {chosen.best_epoch} epochs as chosen by the run"
    assert chosen.trained_on == "train"
    assert not any(MONITOR in line for line in history(tmp_path / "refit"))
    last, best = (checkpoint(tmp_path / "refit", name)["state_dict"] for name in (LAST, BEST))
    assert all(torch.equal(last[key], best[key]) for key in last)
    tests = [evaluate(load_run(tmp_path / name), "test", (10,))["model"]["ndcg@10"] for name in ("run", "refit")]
    assert tests[1] > 0.9 * tests[0]
    with pytest.raises(UserError, match=r"was trained on train and validation, .* only --split test"):
        evaluate(load_run(tmp_path / "refit"), "validation", (10,))


def test_the_ranker_of_a_refit_learns_from_the_run_before_it(dataset: Dataset, tmp_path: Path) -> None:
    """The same trees as that run's own ranker; measured over the refit."""
    chosen = train(dataset, tmp_path / "run", small_recipe())
    train(dataset, tmp_path / "refit", refit_config(chosen), refit_of=str(tmp_path / "run"))
    results = [train_ranker(load_run(tmp_path / name)) for name in ("run", "refit")]
    first, second = ((tmp_path / name / "ranker" / "model.txt").read_text() for name in ("run", "refit"))
    assert first == second
    assert results[0]["model"] != results[1]["model"]
    train(dataset, tmp_path / "orphan", refit_config(chosen))
    with pytest.raises(UserError, match="no run is left that a ranker could learn from"):
        train_ranker(load_run(tmp_path / "orphan"))


def test_the_events_of_a_refit(dataset: Dataset, tmp_path: Path) -> None:
    """One step of a token each: the loss counts every training and validation event, and no test event."""
    config = refit_config(train(dataset, tmp_path / "run", small_recipe("training.max_epochs=1")))
    split = make_split(dataset, config.split)
    train(dataset, tmp_path / "refit", config)
    steps = [history(tmp_path / name)[0]["step"] for name in ("run", "refit")]
    longest = config.model.max_history + 1
    assert steps[1] >= steps[0]
    assert (split.validation_end_U - split.train_end_U).sum() == dataset.num_users and longest < 20


def test_a_refit_is_not_refit(dataset: Dataset, tmp_path: Path) -> None:
    config = refit_config(train(dataset, tmp_path / "run", small_recipe("training.max_epochs=1")))
    train(dataset, tmp_path / "refit", config)
    with pytest.raises(UserError, match="was trained on validation events already"):
        refit_config(open_run(tmp_path / "refit"))
