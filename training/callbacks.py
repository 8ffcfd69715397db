"""What a run writes while it trains: `progress.json` for whoever is watching, `history.jsonl` for good."""

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from passerelle.files import write_text
from training.bert4rec import MONITOR

PROGRESS = "progress.json"
HISTORY = "history.jsonl"
_PROGRESS_INTERVAL_S = 1.0


class RunJournal(pl.Callback):
    """Rank zero writes where training is about once a second, and one line an epoch."""

    def __init__(self, run_path: Path) -> None:
        self._run_path = run_path
        self._written_s = self._epoch_started_s = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop lines of epochs after the checkpoint that training continues from."""
        history = self._run_path / HISTORY
        if trainer.is_global_zero and history.exists():
            lines = [line for line in history.read_text().splitlines() if json.loads(line)["epoch"] <= trainer.current_epoch]
            write_text(history, "".join(f"{line}\n" for line in lines))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_started_s = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero or time.monotonic() - self._written_s < _PROGRESS_INTERVAL_S:
            return
        self._written_s = time.monotonic()
        where = {"epoch": trainer.current_epoch + 1, "step": batch_idx + 1, "steps_per_epoch": int(trainer.num_training_batches)}
        (self._run_path / PROGRESS).write_text(json.dumps({**where, "max_epochs": trainer.max_epochs}))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after validation, so the line holds both."""
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in ("train_loss_epoch", MONITOR)}
        line = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **values}
        line["seconds"] = round(time.monotonic() - self._epoch_started_s, 3)
        with (self._run_path / HISTORY).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
