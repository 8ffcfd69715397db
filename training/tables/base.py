"""The interface of an embedding table: one vector for each item row, wherever the rows are held.

Shape legend: R rows, D width, U rows of a look-up, S rows of a shard.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.tables.files import Shard, open_table, write_table

INITIAL_STD = 0.02
"""Small beside Adam's steps, so that an item with few events soon leaves its random initial vector.

docs/decisions.md has the figures.
"""


class EmbeddingTable(nn.Module, ABC):
    """Vectors by row.

    Args:
        num_rows: R, special rows included.
        dim: D.
    """

    updates_all_rows: ClassVar[bool] = False
    """Whether every row gets a gradient at each step, so that a step takes `all_rows` and looks up none."""
    holds_all_rows: ClassVar[bool] = True
    """Whether this rank holds every row; otherwise look-ups are collective calls."""
    is_self_managed: ClassVar[bool] = False
    """Whether the table trains its rows within the backward pass and stores them in files of its own.

    Then DistributedDataParallel, the model's optimizer and state dicts of checkpoints leave its state out.
    """

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__()
        self.num_rows, self.dim = num_rows, dim

    @abstractmethod
    def forward(self, rows_U: Tensor) -> Tensor:
        """Returns the vectors [U, D] of int64 rows; a collective call unless `holds_all_rows`."""

    @abstractmethod
    def all_rows(self) -> Tensor:
        """Returns all vectors [R, D]; only where `holds_all_rows`."""

    @property
    @abstractmethod
    def shards(self) -> list[Shard]:
        """The rows that this rank holds: one shard, or none where there are fewer rows than ranks."""

    def allocate_like(self, vectors: Tensor) -> Tensor:
        """Returns an uninitialised tensor of the same shape, in memory or on disk as the table is."""
        return torch.empty_like(vectors)

    def set_learning_rate_scale(self, scale: float) -> None:
        """Scales the learning rate of a self-managed table from the next look-up on.

        It has no effect on other tables.
        """

    def materialize(self, local_world_size: int, device: torch.device) -> None:
        """Allocates and initialises the rows of this rank, for a table that needs the process group to do so.

        A collective call; repeated calls do nothing.

        Args:
            local_world_size: ranks of this machine, which share its memory; the same on every machine.
            device: where the rows of this rank go.
        """

    def self_managed_state(self) -> dict[str, Tensor]:
        """Entries of `state_dict` that the table trains, saves and loads itself, by name."""
        return dict(self.state_dict()) if self.is_self_managed else {}

    def save(self, directory: Path) -> str:
        """Writes the table into new files below `directory` and returns their name; a collective call."""
        assert self.is_self_managed
        return write_table(directory, self.num_rows, self.dim, self.shards)

    def load(self, directory: Path, name: str) -> None:
        """Overwrites the rows of this rank with those that `save` wrote.

        Raises:
            UserError: the files are missing or damaged.
        """
        assert self.is_self_managed
        open_table(directory, name).read_into(self.shards)
