"""What a run holds stays whole and true: checkpoints, the clock of an epoch, its split, and what was made
from its weights.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.manifest import MANIFEST_NAME
from passerelle.splits import Split, make_split
from tests.support.datasets import small_recipe
from tests.support.runs import (
    NOT_LEARNING,
    Stop,
    assert_same_state,
    checkpoint,
    history,
    train,
    train_and_die,
    with_split_file,
)
from training.evaluation.evaluate import evaluate, read_evaluation
from training.export.bundle import export
from training.ranker import train_ranker
from training.runs.callbacks import HISTORY, WholeCheckpoints
from training.runs.fit import fit
from training.runs.open_run import load_run
from training.runs.run import DETAILS, EVALUATION, LAST, RANKER, open_run, plan_run, refit_config, start_run

QUICK = ("training.max_epochs=2",)


def seconds(path: Path) -> list[float]:
    return [json.loads(line)["seconds"] for line in (path / HISTORY).read_text(encoding="utf-8").splitlines()]


class KillerWhileSaving(pl.Callback):
    """Kills the process in the middle of writing its `save`-th checkpoint; only for a process of its own."""

    def __init__(self, save: int) -> None:
        self._save = save

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        whole, begun = torch.save, 0

        def half(values: Any, path: Path, **options: Any) -> None:
            nonlocal begun
            begun += 1
            whole(values, path, **options)
            if begun == self._save:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half


def test_a_run_killed_while_writing_a_checkpoint_resumes(dataset: Dataset, tmp_path: Path) -> None:
    """Best and last are written after each epoch; whichever is hit, the run goes on from what was there
    before.
    """
    train(dataset, tmp_path / "alone", *QUICK)
    for save in (1, 2, 3, 4):
        path = tmp_path / f"killed{save}"
        assert train_and_die(dataset, path, small_recipe(*QUICK), KillerWhileSaving(save)) == signal.SIGKILL
        assert [each for each in (path / "checkpoints").iterdir() if each.name.startswith(".")], (
            "it was killed at another time"
        )
        train(dataset, path, *QUICK, resume=True)
        assert sorted(each.name for each in (path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
        assert history(path) == history(tmp_path / "alone")
        assert_same_state(checkpoint(path), checkpoint(tmp_path / "alone"))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 1}, path)
    with pytest.raises(AttributeError, match="pickle"):
        WholeCheckpoints().save_checkpoint({"epoch": lambda: 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_epoch_seconds_include_those_before_an_interruption(dataset: Dataset, tmp_path: Path) -> None:
    """The checkpoint in the middle of the second of three epochs is made to say that it had taken a thousand
    seconds.
    """
    overrides = ("batches.token_budget=256", "training.checkpoint_every_steps=2", "training.max_epochs=3")
    run, config = tmp_path / "run", small_recipe(*overrides)
    start_run(run, plan_run(run, "bert4rec", dataset, config, resume=False))
    with pytest.raises(RuntimeError, match="the power went"):
        fit(dataset, config, run, callbacks=[Stop(epoch=2, batch=3)])
    values = checkpoint(run)
    assert 0 < values["callbacks"]["RunJournal"]["seconds"] < 500
    values["callbacks"]["RunJournal"]["seconds"] = 1000.0
    torch.save(values, run / LAST)
    train(dataset, run, *overrides, resume=True)
    first, second, third = seconds(run)
    assert max(first, third) < 500
    assert second > 1000


def test_a_complete_run_interrupted_while_continued(dataset: Dataset, tmp_path: Path) -> None:
    """Its manifest says nothing of checkpoints that are being replaced; what was made from the old weights
    goes when it ends.
    """
    run, config = tmp_path / "run", small_recipe("training.max_epochs=8")
    train(dataset, run, *QUICK)
    evaluate(load_run(run), "test", (10,))
    start_run(run, plan_run(run, "bert4rec", dataset, config, resume=True))
    with pytest.raises(RuntimeError, match="the power went"):
        fit(dataset, config, run, resume=True, callbacks=[Stop(epoch=4, batch=1)])
    with (run / LAST).open("ab") as stream:
        stream.write(b"another size")
    train(dataset, run, config=config, resume=True)
    assert not (run / EVALUATION).exists()
    assert open_run(run).sealed_best is None


def test_new_weights_remove_the_ranker_and_evaluations(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", *QUICK)
    train_ranker(load_run(tmp_path / "run"))
    evaluate(load_run(tmp_path / "run"), "test", (10,))
    train(dataset, tmp_path / "run", "training.max_epochs=8", resume=True)
    assert not any((tmp_path / "run" / name).exists() for name in (RANKER, EVALUATION, DETAILS))
    with pytest.raises(UserError, match="ranker"):
        export(load_run(tmp_path / "run"), tmp_path / "bundle")


def test_unchanged_weights_keep_ranker_and_evaluations(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", NOT_LEARNING, "training.max_epochs=1")
    train_ranker(load_run(tmp_path / "run"))
    before = read_evaluation(tmp_path / "run")
    again = train(dataset, tmp_path / "run", NOT_LEARNING, "training.max_epochs=2", resume=True)
    assert (again.epochs, again.best_epoch) == (2, 1)
    assert read_evaluation(tmp_path / "run") == before != {}
    assert (tmp_path / "run" / RANKER).is_dir()


def test_a_manifest_with_an_idle_option_still_opens(dataset: Dataset, tmp_path: Path) -> None:
    """What a user may not write today an older version may have recorded."""
    train(dataset, tmp_path / "run", "objective.kind=causal", "training.max_epochs=1")
    manifest = tmp_path / "run" / MANIFEST_NAME
    values = json.loads(manifest.read_text())
    values["config"]["objective"]["mask_probability"] = 0.7
    manifest.write_text(json.dumps(values))
    assert open_run(tmp_path / "run").config.objective.mask_probability == 0.7


def test_a_run_of_an_earlier_format_is_refused(tmp_path: Path) -> None:
    """Its recorded configuration has the flat options of losses and samplers."""
    manifest = tmp_path / "run" / MANIFEST_NAME
    manifest.parent.mkdir()
    values = {"kind": "run", "format_version": 1, "config": {"loss": {"sampler": "mixed"}}}
    manifest.write_text(json.dumps(values))
    with pytest.raises(UserError, match="format 1, this code reads 2: make it again with `passerelle train`"):
        open_run(tmp_path / "run")


def splits(dataset: Dataset, path: Path) -> Split:
    return make_split(dataset, load_run(path).manifest.config.split)


def test_a_run_keeps_its_split(dataset: Dataset, tmp_path: Path) -> None:
    """The user's file may go, come back elsewhere, but not change; a refit has the same."""
    file, run = tmp_path / "given.csv", tmp_path / "run"
    pinned = with_split_file(dataset, file, "1,2", *QUICK)
    chosen = train(dataset, run, config=pinned)
    expected = make_split(dataset, pinned.split)
    shutil.move(file, tmp_path / "elsewhere.csv")
    shutil.move(run, tmp_path / "moved")
    run = tmp_path / "moved"
    ours = splits(dataset, run)
    assert all(np.array_equal(getattr(ours, name), values) for name, values in vars(expected).items())
    assert evaluate(load_run(run), "test", (10,))["model"]["ndcg@10"] > 0

    there = pinned.split.model_copy(update={"file": tmp_path / "elsewhere.csv"})
    longer = pinned.training.model_copy(update={"max_epochs": 3})
    train(dataset, run, config=pinned.model_copy(update={"split": there, "training": longer}), resume=True)
    train(dataset, tmp_path / "refit", config=refit_config(load_run(run).manifest), refit_of=run)
    assert (splits(dataset, tmp_path / "refit").train_end_U == expected.train_end_U).all()
    assert chosen.config.split.file == file

    other = there.model_copy(update={"file_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"elsewhere.csv: not the split"):
        train(dataset, run, config=pinned.model_copy(update={"split": other}), resume=True)
