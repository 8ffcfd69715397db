"""A table that is a parameter like any other.

Shape legend: R rows, D width, U rows of a look-up.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passerelle.ids import PADDING_ROW
from training.tables.base import INITIAL_STD, EmbeddingTable
from training.tables.files import Shard


class DenseTable(EmbeddingTable):
    """A parameter [R, D]; every step has a gradient of all rows.

    Args:
        num_rows, dim: R and D.
        generator: draws the initial vectors; that of the padding row is zero.
    """

    updates_all_rows: ClassVar[bool] = True

    def __init__(self, num_rows: int, dim: int, generator: torch.Generator) -> None:
        super().__init__(num_rows, dim)
        self.weight = nn.Parameter(torch.empty(num_rows, dim))
        nn.init.trunc_normal_(self.weight, std=INITIAL_STD, generator=generator)
        with torch.no_grad():
            self.weight[PADDING_ROW] = 0.0

    def forward(self, rows_U: Tensor) -> Tensor:
        return F.embedding(rows_U, self.weight)

    def all_rows(self) -> Tensor:
        return self.weight

    @property
    def shards(self) -> list[Shard]:
        return [Shard(0, self.weight.detach())]
