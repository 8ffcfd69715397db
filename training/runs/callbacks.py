"""What a run writes while it trains: checkpoints, `progress.json` and `history.jsonl`.

A run may be killed at any moment, and its directory may be on another file system than where temporary files
are: files that are needed to continue are written beside their target and renamed.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from passerelle.files import new_file, write_text
from training.model.sequence_model import MONITOR, SequenceModel
from training.tables.files import TABLE_KEY, remove_other_tables

PROGRESS = "progress.json"
HISTORY = "history.jsonl"
_PROGRESS_INTERVAL_S = 1.0


def read_history(run_path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's `history.jsonl`, the first epoch first."""
    return [json.loads(line) for line in (run_path / HISTORY).read_text(encoding="utf-8").splitlines()]


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically on any file system; Lightning would copy them from a temporary folder.

    Tables that no checkpoint beside it names any more are removed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with new_file(Path(path)) as beside:
            torch.save(checkpoint, beside)
        if TABLE_KEY in checkpoint:
            folder = Path(path).parent
            remove_other_tables(
                folder, {read_checkpoint(other)[TABLE_KEY] for other in folder.glob("*.ckpt")}
            )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns a checkpoint, its tensors memory-mapped."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`, by validation NDCG@10; a resumed run finds it also where its directory has moved."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            dirpath=directory, filename="best", monitor=MONITOR, mode="max", enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        path = str(Path(self.dirpath) / "best.ckpt")
        best = dict(zip([path], state_dict["best_k_models"].values(), strict=False))
        here = {
            "dirpath": self.dirpath,
            "best_model_path": path,
            "kth_best_model_path": path,
            "best_k_models": best,
        }
        super().load_state_dict({**state_dict, **here})


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt` after every epoch, better or not (Lightning's `save_last` writes it only where the best
    changes).

    Also every so many steps of an epoch, but not after its last: what follows that belongs to the epoch.
    """

    def __init__(self, directory: Path, every_steps: int) -> None:
        super().__init__(
            dirpath=directory, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        self._every_steps = every_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % self._every_steps == 0 and done < trainer.num_training_batches:
            assert self.dirpath is not None and self.filename is not None
            trainer.save_checkpoint(Path(self.dirpath) / f"{self.filename}.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignores the state: neither the directory of the run nor its last epoch matters."""


class Patience(EarlyStopping):
    """Stops after `patience` validations without a better NDCG@10; a resumed run counts on, with the patience
    it is given now.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(MONITOR, mode="max", patience=patience)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that had stopped, and was perhaps killed before it could say so, has nothing left to
        train.
        """
        trainer.should_stop = self.wait_count >= self.patience


class RunJournal(pl.Callback):
    """Rank zero writes where training is about once a second, and one line an epoch."""

    def __init__(self, run_path: Path) -> None:
        self._run_path = run_path
        self._written_s = 0.0
        self._epoch_started_s: float | None = None
        self._validation: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop lines of epochs after the checkpoint that training continues from."""
        history = self._run_path / HISTORY
        if trainer.is_global_zero and history.exists():
            lines = [line for line in read_history(self._run_path) if line["epoch"] <= trainer.current_epoch]
            write_text(history, "".join(f"{json.dumps(line)}\n" for line in lines))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._epoch_started_s is None:  # else it is one that is continued
            self._epoch_started_s = time.monotonic()
        self._validation = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = {MONITOR: float(trainer.callback_metrics[MONITOR])}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or time.monotonic() - self._written_s < _PROGRESS_INTERVAL_S:
            return
        self._written_s = time.monotonic()
        where = {
            "epoch": trainer.current_epoch + 1,
            "step": batch_idx + 1,
            "steps_per_epoch": int(trainer.num_training_batches),
        }
        (self._run_path / PROGRESS).write_text(json.dumps({**where, "max_epochs": trainer.max_epochs}))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after validation, so the line holds both, where the epoch has one."""
        assert isinstance(pl_module, SequenceModel)
        loss = float(pl_module.mean_train_loss())
        seconds = self.state_dict()["seconds"]
        self._epoch_started_s = None
        if not trainer.is_global_zero:
            return
        line = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "train_loss_epoch": loss,
            **self._validation,
            "seconds": round(seconds, 3),
        }
        history = self._run_path / HISTORY
        before = history.read_text(encoding="utf-8") if history.exists() else ""
        write_text(history, f"{before}{json.dumps(line)}\n")

    def state_dict(self) -> dict[str, float]:
        """Seconds of the epoch so far, those before an earlier interruption included."""
        return {"seconds": 0.0 if self._epoch_started_s is None else time.monotonic() - self._epoch_started_s}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._epoch_started_s = time.monotonic() - state_dict["seconds"] if state_dict["seconds"] else None
