"""Loaders for Lightning: a new one each epoch, so that an epoch's batches depend on its number and nothing else."""

from collections.abc import Iterator

import pytorch_lightning as pl
from torch.utils.data import DataLoader, IterableDataset

from passerelle.dataset import Dataset
from passerelle.splits import EvaluationUsers, Split
from training.batches import Batch, EpochBatches
from training.config import RunConfig
from training.evaluation_batches import EvaluationBatch, EvaluationBatches


class _Batches(IterableDataset[Batch | EvaluationBatch]):
    def __init__(self, batches: EpochBatches | EvaluationBatches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch | EvaluationBatch]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class SequenceData(pl.LightningDataModule):
    """Training windows and validation histories of one dataset; use with `reload_dataloaders_every_n_epochs=1`."""

    def __init__(self, dataset: Dataset, split: Split, validation_users: EvaluationUsers, config: RunConfig) -> None:
        super().__init__()
        self._dataset, self._split, self._users, self._config = dataset, split, validation_users, config

    def train_dataloader(self) -> DataLoader[Batch | EvaluationBatch]:
        assert self.trainer is not None
        trainer = self.trainer
        batches = EpochBatches(
            self._dataset,
            self._split,
            self._config,
            epoch=trainer.current_epoch,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return DataLoader(_Batches(batches), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch | EvaluationBatch]:
        assert self.trainer is not None
        batches = EvaluationBatches(
            self._dataset,
            self._users,
            max_history=self._config.model.max_history,
            token_budget=self._config.batches.token_budget,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return DataLoader(_Batches(batches), batch_size=None)
