"""Loaders for Lightning.

There is a new one each epoch, so that the batches of an epoch depend on its number alone.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytorch_lightning as pl

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import EvaluationUsers, Split
from training.config import Recipe
from training.data.batches import Batch, EpochBatches
from training.data.evaluation_batches import EvaluationBatches

PREFETCHED_BATCHES = 4
Item = TypeVar("Item")


class EpochLoader:
    """The batches of one epoch, collated ahead by a thread; checkpoints hold the position in the epoch."""

    def __init__(self, batches: EpochBatches, trainer: pl.Trainer) -> None:
        self._batches, self._trainer, self._epoch = batches, trainer, trainer.current_epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return prefetched(self._batches, PREFETCHED_BATCHES)

    def state_dict(self) -> dict[str, int]:
        """Returns the number of steps that are in the weights, however many batches were prefetched."""
        steps = self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return {"epoch": self._epoch, "steps": steps, "steps_per_epoch": len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continues where the checkpoint was made; one made at the end of an epoch does not affect the next.

        Raises:
            UserError: it was made within an epoch of other batches: those of very few windows depend on the
                number of workers.
        """
        if state_dict["epoch"] == self._epoch:
            begun = state_dict["steps_per_epoch"]
            if begun != len(self):
                raise UserError(
                    f"epoch {self._epoch + 1} was begun with {begun} steps and has {len(self)} "
                    "with this number of workers: resume with the number it had"
                )
            self._batches.first_step = state_dict["steps"]


class SequenceData(pl.LightningDataModule):
    """Training windows and validation histories of one dataset.

    Use it with `reload_dataloaders_every_n_epochs=1`.
    """

    def __init__(
        self, dataset: Dataset, split: Split, validation_users: EvaluationUsers, config: Recipe
    ) -> None:
        super().__init__()
        self._dataset, self._split, self._users, self._config = dataset, split, validation_users, config

    def train_dataloader(self) -> EpochLoader:
        trainer = self.trainer
        assert trainer is not None
        batches = EpochBatches(
            self._dataset,
            self._split,
            self._config,
            epoch=trainer.current_epoch,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return EpochLoader(batches, trainer)

    def val_dataloader(self) -> EvaluationBatches:
        assert self.trainer is not None
        return EvaluationBatches(
            self._dataset,
            self._users,
            max_history=self._config.model.max_history,
            token_budget=self._config.batches.token_budget,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )


def prefetched(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """Yields the same items in the same order, made by a thread that is at most `depth` ahead.

    Errors of the thread are raised here.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(depth)
    abandoned = threading.Event()

    def put(item: "Item | _End") -> bool:
        while not abandoned.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_End(None))
        except BaseException as error:  # raised where the next item is asked for
            put(_End(error))

    threading.Thread(target=work, name="prefetch", daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        abandoned.set()


class _End:
    """The end of the items, or the error that ended them."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
