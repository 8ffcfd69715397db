"""The table of a finished run, mapped from disk.

Shape legend: R rows, D width, U rows of a look-up.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.tables.base import EmbeddingTable
from training.tables.files import Shard


class MappedTable(EmbeddingTable):
    """Rows on disk, for look-ups alone.

    Args:
        weight_RD: all rows, mapped.
        directory: has space for temporary files as large as the table.
    """

    def __init__(self, weight_RD: Tensor, directory: Path) -> None:
        super().__init__(*weight_RD.shape)
        self.weight = weight_RD
        self._directory = directory

    def forward(self, rows_U: Tensor) -> Tensor:
        return self.weight[rows_U]

    def all_rows(self) -> Tensor:
        return self.weight

    @property
    def shards(self) -> list[Shard]:
        return [Shard(0, self.weight)]

    def allocate_like(self, vectors: Tensor) -> Tensor:
        """Returns a float32 tensor that is mapped from an unnamed file for as long as it is in use."""
        with tempfile.TemporaryFile(dir=self._directory) as file:
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=tuple(vectors.shape)))
