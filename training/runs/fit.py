"""Train a run: the same function in one process, and in every worker of a Ray Train job."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from passerelle.dataset import Dataset
from passerelle.machine import usable_cores
from passerelle.splits import evaluation_users, make_split
from training.config import Recipe
from training.data.batches import EpochBatches
from training.data.loaders import SequenceData
from training.data.windows import training_split
from training.model.factory import build_training_model
from training.runs.callbacks import BestCheckpoint, LastCheckpoint, Patience, RunJournal, WholeCheckpoints
from training.runs.run import LAST, RunManifest, finish_run, plan_run, start_run


@dataclass(frozen=True)
class Workers:
    """The processes that train a run together, and what their launcher adds to the Lightning trainer."""

    count: int = 1
    """Ranks in all; each takes its share of every step."""
    local_world_size: int = 1
    """Ranks of this machine, among which its cores are shared."""
    strategy: Any = "auto"
    plugins: Sequence[Any] = ()
    prepare: Callable[[pl.Trainer], pl.Trainer] | None = None
    """Prepares the trainer before it starts."""


def fit(
    dataset: Dataset,
    config: Recipe,
    run_path: Path,
    *,
    resume: bool = False,
    workers: Workers = Workers(),
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Trains until `max_epochs` or until `patience` validations bring nothing; rank zero writes the run.

    Every rank calls this, between `start_run` and `finish_run` of the process that launches it.

    Args:
        callbacks: called before those that write the run.

    Raises:
        UserError: the split leaves a part empty, there are fewer windows than workers, training has diverged,
            or a run of very few windows is resumed with another number of workers.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_num_threads(config.training.threads or max(1, usable_cores() // workers.local_world_size))
    warnings.filterwarnings(
        "ignore", message="The number of training batches .* is smaller than", category=UserWarning
    )
    warnings.filterwarnings(
        "ignore", message="Checkpoint directory .* exists and is not empty", category=UserWarning
    )
    # Lightning 2.6 with torch 2.13
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
    whole = make_split(dataset, config.split)
    users, split = evaluation_users(whole, "validation"), training_split(whole, config)
    steps_per_epoch = len(EpochBatches(dataset, split, config, epoch=0, world_size=workers.count))
    model = build_training_model(
        dataset,
        split,
        config,
        total_steps=steps_per_epoch * config.training.max_epochs,
        num_shards=workers.count,
    )
    model.table_checkpoint.directory = checkpoints = run_path / "checkpoints"
    model.local_world_size = workers.local_world_size
    choice: list[pl.Callback] = (
        []
        if config.training.include_validation
        else [Patience(config.training.patience), BestCheckpoint(checkpoints)]
    )
    ours = [
        RunJournal(run_path),
        *choice,
        LastCheckpoint(checkpoints, config.training.checkpoint_every_steps),
    ]
    trainer = pl.Trainer(
        max_epochs=config.training.num_epochs,
        limit_val_batches=0 if config.training.include_validation else None,
        check_val_every_n_epoch=config.training.validate_every_epochs,
        precision=config.training.precision,
        gradient_clip_val=config.optimizer.gradient_clip_norm,
        log_every_n_steps=config.training.log_every_steps,
        accelerator="auto",
        devices="auto" if workers.count > 1 or workers.strategy != "auto" else 1,
        strategy=workers.strategy,
        plugins=[WholeCheckpoints(), *workers.plugins],
        # last.ckpt comes last: it holds the state of the others
        callbacks=[*callbacks, *ours],
        logger=TensorBoardLogger(run_path, name="tensorboard", version=""),
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if workers.prepare is not None:
        trainer = workers.prepare(trainer)
    last = run_path / LAST
    data = SequenceData(dataset, split, users, config)
    try:
        trainer.fit(model, data, ckpt_path=last if resume and last.exists() else None, weights_only=True)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into it
        raise stop.__context__ if isinstance(stop.__context__, KeyboardInterrupt) else stop from None


def train_in_process(
    recipe: str,
    dataset: Dataset,
    config: Recipe,
    run_path: Path,
    *,
    resume: bool = False,
    refit_of: Path | None = None,
) -> RunManifest:
    """Trains a whole run in this process: creates or continues it, fits, and seals it.

    Raises:
        UserError: the run may not be created or continued, or what `fit` raises.
    """
    manifest = plan_run(run_path, recipe, dataset, config, resume=resume, refit_of=refit_of)
    start_run(run_path, manifest)
    fit(dataset, config, run_path, resume=resume)
    return finish_run(run_path, manifest)
