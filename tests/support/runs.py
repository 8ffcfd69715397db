"""Small runs, and what they have written."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from passerelle.dataset import Dataset
from tests.support.datasets import small_recipe
from training.config import Recipe
from training.runs.fit import fit, train_in_process
from training.runs.run import LAST, RunManifest, plan_run, start_run

SAMPLED = ("loss.kind=sampled", "loss.num_negatives=64")
NOT_LEARNING = "optimizer.learning_rate=1e-12"


class Stop(pl.Callback):
    """Fails in the middle of an epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self._where = (epoch - 1, batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self._where:
            raise RuntimeError("the power went")


def train(
    dataset: Dataset,
    path: Path,
    *overrides: str,
    config: Recipe | None = None,
    resume: bool = False,
    refit_of: Path | None = None,
) -> RunManifest:
    """A whole run in this process, of the small recipe with some overrides or of another configuration."""
    return train_in_process(
        "bert4rec", dataset, config or small_recipe(*overrides), path, resume=resume, refit_of=refit_of
    )


def train_and_die(dataset: Dataset, path: Path, config: Recipe, killer: pl.Callback) -> int:
    """The signal that a process of its own died of; it continues the run where there is one."""
    child = os.fork()
    if child == 0:
        try:
            start_run(path, plan_run(path, "bert4rec", dataset, config, resume=path.exists()))
            fit(dataset, config, path, resume=(path / LAST).exists(), callbacks=[killer])
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def with_split_file(
    dataset: Dataset, file: Path, counts: str, *overrides: str, num_users: int = 100
) -> Recipe:
    """The small recipe with a split file for the first users, each with the same `validation,test` counts."""
    users = dataset.user_ids().ids(np.arange(num_users) + dataset.user_ids().first_row)
    file.write_text(
        "user_id,validation_events,test_events\n" + "".join(f"{user},{counts}\n" for user in users)
    )
    config = small_recipe("split.rule=file", f"split.file={file}", *overrides)
    return config.model_copy(update={"split": config.split.pinned()})


def history(path: Path) -> list[dict[str, Any]]:
    """Lines of `history.jsonl` without what a clock measured."""
    lines = [json.loads(line) for line in (path / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("seconds") > 0 for line in lines)
    return lines


def checkpoint(path: Path, name: str = LAST) -> dict[str, Any]:
    values: dict[str, Any] = torch.load(path / name, weights_only=True)
    return values


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Weights and the optimizer's moments, bit by bit."""
    assert all(
        torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"]
    )
    our_moments, their_moments = (values["optimizer_states"][0]["state"] for values in (ours, theirs))
    assert all(
        torch.equal(our_moments[index][name], their_moments[index][name])
        for index in their_moments
        for name in their_moments[index]
    )
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
