"""A run that broke off, by kill -9 at any step, goes on as though undisturbed; and training once more on
train and validation.
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import make_split
from tests.support.datasets import dataset_of, small_recipe
from tests.support.ranks import run_on_ranks
from tests.support.runs import (
    NOT_LEARNING,
    SAMPLED,
    Stop,
    assert_same_state,
    checkpoint,
    history,
    train,
    train_and_die,
)
from training.data.batches import EpochBatches
from training.evaluation.evaluate import evaluate, read_details
from training.model.sequence_model import MONITOR, SequenceModel
from training.ranker import train_ranker
from training.runs.fit import fit
from training.runs.open_run import load_run
from training.runs.run import BEST, LAST, open_run, plan_run, refit_config, start_run

EPOCHS = 3
SMALL_STEPS = (
    "batches.token_budget=256",
    "training.checkpoint_every_steps=2",
    f"training.max_epochs={EPOCHS}",
    "model.dropout=0.2",
)


class Killer(pl.Callback):
    """Kills the process right after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "overrides",
    [(), SAMPLED, ("training.validate_every_epochs=2",)],
    ids=["full", "sampled", "validated_every_2"],
)
def test_resumed_equals_uninterrupted(dataset: Dataset, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Both a run that ended early and one that broke off in the middle of its fourth epoch."""
    whole = train(dataset, tmp_path / "whole", *overrides, "training.max_epochs=6")
    train(dataset, tmp_path / "longer", *overrides, "training.max_epochs=3")
    longer = train(dataset, tmp_path / "longer", *overrides, "training.max_epochs=6", resume=True)

    broken, config = tmp_path / "broken", small_recipe(*overrides, "training.max_epochs=6")
    start_run(broken, plan_run(broken, "bert4rec", dataset, config, resume=False))
    with pytest.raises(RuntimeError, match="the power went"):
        fit(dataset, config, broken, callbacks=[Stop(epoch=4, batch=2)])
    with pytest.raises(
        UserError, match="training has not ended: continue it with `passerelle train --resume`"
    ):
        load_run(broken)
    mended = train(dataset, broken, *overrides, "training.max_epochs=6", resume=True)

    for manifest in (longer, mended):
        assert (manifest.epochs, manifest.best_epoch, manifest.validation) == (
            whole.epochs,
            whole.best_epoch,
            whole.validation,
        )
    for name in ("longer", "broken"):
        assert history(tmp_path / name) == history(tmp_path / "whole")
        assert_same_state(checkpoint(tmp_path / name), checkpoint(tmp_path / "whole"))
        assert_same_state(checkpoint(tmp_path / name, BEST), checkpoint(tmp_path / "whole", BEST))


def test_a_moved_run_resumes_with_its_best_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path / "here", NOT_LEARNING, "training.max_epochs=2")
    shutil.move(tmp_path / "here", tmp_path / "there")
    manifest = train(dataset, tmp_path / "there", NOT_LEARNING, "training.max_epochs=3", resume=True)
    assert (manifest.epochs, manifest.best_epoch) == (3, 1)
    assert sorted(path.name for path in (tmp_path / "there" / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]


def test_resuming_a_run_that_never_ended_an_epoch(dataset: Dataset, tmp_path: Path) -> None:
    path, config = tmp_path / "run", small_recipe("training.max_epochs=2")
    start_run(path, plan_run(path, "bert4rec", dataset, config, resume=False))
    with pytest.raises(RuntimeError, match="the power went"):
        fit(dataset, config, path, callbacks=[Stop(epoch=1, batch=1)])
    train(dataset, path, "training.max_epochs=2", resume=True)
    assert [line["epoch"] for line in history(path)] == [1, 2]


LEARNING_SAMPLER = (
    "loss.kind=sampled",
    "loss.sampler.kind=in_batch",
    "loss.sampler.streaming_rate=0.01",
    "loss.num_negatives=64",
)


@pytest.mark.parametrize(
    "overrides",
    [(), ("objective.kind=causal", "model.time_bias=true"), LEARNING_SAMPLER],
    ids=["bert4rec", "sasrec", "learning_sampler"],
)
def test_a_run_killed_at_many_steps_ends_identically(
    dataset: Dataset, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """Before the first checkpoint, right after one, between two, at an epoch's last step, and twice in one
    epoch; bit by bit.
    """
    config = small_recipe(*SMALL_STEPS, *overrides)
    steps = len(EpochBatches(dataset, make_split(dataset, config.split), config, epoch=0))
    assert steps >= 8
    train(dataset, tmp_path / "alone", config=config)
    for step in (1, 2, 5, steps, steps + 3, steps + 4, 2 * steps + 1, 3 * steps - 1):
        assert train_and_die(dataset, tmp_path / "killed", config, Killer(step)) == signal.SIGKILL
    manifest = train(dataset, tmp_path / "killed", config=config, resume=True)
    assert manifest.epochs == EPOCHS
    assert history(tmp_path / "killed") == history(tmp_path / "alone")
    for name in (LAST, BEST):
        ours, theirs = (checkpoint(tmp_path / run, name) for run in ("killed", "alone"))
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        assert all(
            torch.equal(ours["state_dict"][key], theirs["state_dict"][key]) for key in theirs["state_dict"]
        )


def save_and_load_on_rank(rank: int, folder: str) -> None:
    """Two ranks, of which the first writes the checkpoint; what an epoch's loss is after each has gone on
    from it.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    saved, resumed = (
        SequenceModel(small_recipe(), torch.zeros(9, dtype=torch.float64), total_steps=1) for _ in range(2)
    )
    saved.epoch_loss.restore(torch.tensor([(6.0, 2.0), (10.0, 2.0)][rank], dtype=torch.float64))
    made: dict[str, Any] = {}
    saved.on_save_checkpoint(made)
    if rank == 0:
        torch.save(made, f"{folder}/checkpoint")
    dist.barrier()
    resumed.on_load_checkpoint(torch.load(f"{folder}/checkpoint", weights_only=True))
    means = [float(model.mean_train_loss()) for model in (saved, resumed)]
    torch.save((means, saved.epoch_loss._sums.tolist()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_the_loss_of_an_epoch_that_two_workers_resumed(tmp_path: Path) -> None:
    """Two steps with losses 6 and 10 in all: 4 a step, also from the checkpoint that the first of them
    wrote.
    """
    run_on_ranks(save_and_load_on_rank, 2, str(tmp_path))
    for rank, total in ((0, 6.0), (1, 10.0)):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == ([4.0, 4.0], [total, 2.0])


def test_a_refit_trains_on_validation_events_for_the_chosen_epochs(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = train(dataset, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    again = train(dataset, tmp_path / "refit", config=refit_config(chosen), refit_of=Path("run"))
    assert (again.epochs, again.best_epoch, again.validation) == (chosen.best_epoch, chosen.best_epoch, {})
    assert (
        again.trained_on
        == f"train and validation, {chosen.best_epoch} epochs as chosen by {tmp_path.resolve() / 'run'}"
    )
    assert chosen.trained_on == "train"
    assert not any(MONITOR in line for line in history(tmp_path / "refit"))
    last, best = (checkpoint(tmp_path / "refit", name)["state_dict"] for name in (LAST, BEST))
    assert all(torch.equal(last[key], best[key]) for key in last)
    tests = [
        evaluate(load_run(tmp_path / name), "test", (10,))["model"]["ndcg@10"] for name in ("run", "refit")
    ]
    assert tests[1] > 0.9 * tests[0]
    fitted_on = [read_details(tmp_path / name)["test"]["model"]["fitted_on"] for name in ("run", "refit")]
    assert fitted_on == [chosen.trained_on, again.trained_on]
    baselines_on = [
        read_details(tmp_path / name)["test"]["popularity"]["fitted_on"] for name in ("run", "refit")
    ]
    assert baselines_on == ["train", "before_targets"], "a baseline learns from what the model learnt from"
    with pytest.raises(UserError, match=r"was trained on train and validation, .* only --split test"):
        evaluate(load_run(tmp_path / "refit"), "validation", (10,))


def test_the_ranker_of_a_refit_learns_from_the_run_before_it(dataset: Dataset, tmp_path: Path) -> None:
    """The same trees as that run's own ranker; measured over the refit."""
    chosen = train(dataset, tmp_path / "run")
    train(dataset, tmp_path / "refit", config=refit_config(chosen), refit_of=tmp_path / "run")
    results = [train_ranker(load_run(tmp_path / name)) for name in ("run", "refit")]
    first, second = ((tmp_path / name / "ranker" / "model.txt").read_text() for name in ("run", "refit"))
    assert first == second
    assert results[0]["model"] != results[1]["model"]
    train(dataset, tmp_path / "orphan", config=refit_config(chosen))
    with pytest.raises(UserError, match="was trained on the validation events that a ranker learns from"):
        train_ranker(load_run(tmp_path / "orphan"))


class Recorder(pl.Callback):
    """Remembers every item that is in a batch, as input or as target."""

    def __init__(self) -> None:
        self.rows: set[int] = set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows |= {*batch.items_T.tolist(), *batch.target_rows_M.tolist()}


@pytest.mark.parametrize("rule", ["leave_one_out", "global_time"])
def test_a_refit_trains_on_train_and_validation_events(tmp_path: Path, rule: str) -> None:
    """Every training and validation event, and no test event; each is of another item, and histories are
    never cut.
    """
    rows = iter(range(FIRST_ITEM_ROW, 200))
    histories = [[(next(rows), 1000 * index + user) for index in range(4 + user)] for user in range(8)]
    dataset = dataset_of(tmp_path / "dataset", histories, num_items=next(rows) - FIRST_ITEM_ROW)
    recipe = (
        "objective.kind=causal",
        "model.max_history=30",
        "training.max_epochs=1",
        "training.log_every_steps=1",
        f"split.rule={rule}",
        *(["split.test_fraction=0.2"] if rule == "global_time" else []),
    )
    split = make_split(dataset, small_recipe(*recipe).split)
    assert (split.test_end_U > split.validation_end_U).any() and (
        split.validation_end_U > split.train_end_U
    ).any()
    for included, end_U in (("false", split.train_end_U), ("true", split.validation_end_U)):
        recorder, config = Recorder(), small_recipe(*recipe, f"training.include_validation={included}")
        start_run(tmp_path / included, plan_run(tmp_path / included, "sasrec", dataset, config, resume=False))
        fit(dataset, config, tmp_path / included, callbacks=[recorder])
        trained = [
            range(start, end) for start, end in zip(split.start_U, end_U, strict=True) if end - start >= 2
        ]
        assert recorder.rows == {int(dataset.item_rows_E[event]) for events in trained for event in events}


def test_refitting_a_refit_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = refit_config(train(dataset, tmp_path / "run", "training.max_epochs=1"))
    train(dataset, tmp_path / "refit", config=config)
    with pytest.raises(UserError, match="was trained on validation events already"):
        refit_config(open_run(tmp_path / "refit"))
