"""Id tables whose step costs what the rows that it looks up cost: TorchRec collections, trained within the backward pass.

One rank holds an unsharded `EmbeddingCollection`; each backward pass takes one step of row-wise
Adagrad with the summed gradient of each row, as FBGEMM's fused tables do.

Shape legend: R rows, D width, U rows of a step (each once).
"""

import functools
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passerelle.errors import UserError
from passerelle.ids import PADDING_ROW
from training.tables.files import Shard

TABLE = "item"
EPSILON = 1e-8
BLOCK_ROWS = 2**16


class SparseTable(nn.Module):
    """Vectors by row, with one number of optimizer state a row.

    Args:
        num_rows, dim: R and D.
        std: of the first, random vectors; that of row 0 is zero.
        seed: of these.
        learning_rate: of row-wise Adagrad, to be scaled by `learning_rate_share`.

    Raises:
        UserError: torchrec is not installed.
    """

    def __init__(self, num_rows: int, dim: int, *, std: float, seed: int, learning_rate: float) -> None:
        super().__init__()
        self.collection = empty_collection(num_rows, dim).to_empty(device="cpu")
        self.collection.embeddings[TABLE].sparse = True
        self.momentum_R: Tensor
        self.register_buffer("momentum_R", torch.zeros(num_rows))
        self._learning_rate = learning_rate
        self.learning_rate_share = 1.0
        with torch.no_grad():
            fill_rows(self.weight, 0, std, seed)
        self.weight.register_post_accumulate_grad_hook(self._step)

    @property
    def weight(self) -> nn.Parameter:
        """[R, D]."""
        weight = self.collection.embeddings[TABLE].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def shards(self) -> list[Shard]:
        """All rows."""
        return [Shard(0, self.weight.detach(), self.momentum_R)]

    def forward(self, rows_U: Tensor) -> Tensor:
        """[U, D] of int64 rows."""
        vectors_UD: Tensor = self.collection(asked_for(rows_U))[TABLE].values()
        return vectors_UD

    @torch.no_grad()
    def _step(self, weight: Tensor) -> None:
        """Row-wise Adagrad: a row's state is the sum over steps of the mean square of its gradient."""
        assert weight.grad is not None
        gradient = weight.grad.coalesce()
        rows_U, gradient_UD = gradient.indices()[0], gradient.values()
        momentum_U = self.momentum_R[rows_U] + gradient_UD.square().mean(dim=1)
        self.momentum_R[rows_U] = momentum_U
        learning_rate = self._learning_rate * self.learning_rate_share
        weight.index_add_(0, rows_U, gradient_UD * (-learning_rate / (momentum_U.sqrt() + EPSILON))[:, None])
        weight.grad = None


class MappedTable(nn.Module):
    """As a finished run has it: rows on disk, to be looked up and not to be trained.

    Args:
        weight_RD: all of them, mapped.
        folder: where there is room for something as large.
    """

    def __init__(self, weight_RD: Tensor, folder: Path) -> None:
        super().__init__()
        self.weight = weight_RD
        self._folder = folder

    def forward(self, rows_U: Tensor) -> Tensor:
        """[U, D] of int64 rows."""
        return self.weight[rows_U]

    def room(self) -> Tensor:
        """Something as large as the table to write into, on disk as well, for as long as it is used."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=tuple(self.weight.shape)))


@functools.cache
def torchrec_package() -> Any:
    """Imported where a recipe wants it: training without it needs no torchrec."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # it warns of its own caller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FBGEMM's CPU build warns of each operator that it lacks
        try:
            import torchrec
        except ImportError:
            raise UserError(
                "items.table = 'sparse' needs torchrec: `passerelle doctor` says how to install it"
            ) from None
    return torchrec


def empty_collection(num_rows: int, dim: int) -> Any:
    """A collection of one table that takes no memory yet."""
    torchrec = torchrec_package()
    config = torchrec.EmbeddingConfig(
        name=TABLE, num_embeddings=num_rows, embedding_dim=dim, feature_names=[TABLE]
    )
    return torchrec.EmbeddingCollection([config], device=torch.device("meta"))


def asked_for(rows_U: Tensor) -> Any:
    """Rows as a collection is asked for them."""
    lengths = torch.full((1,), len(rows_U), dtype=torch.int64, device=rows_U.device)
    return torchrec_package().KeyedJaggedTensor([TABLE], rows_U, lengths=lengths)


def fill_rows(rows_RD: Tensor, first_row: int, std: float, seed: int) -> None:
    """Normal numbers for the rows from `first_row` on, of a row the same whoever holds it; row 0, which is padding, is zero.

    They are made in blocks, each with a seed of its own, so that nobody need make those before a shard of a table.
    """
    end_row = first_row + len(rows_RD)
    for block_start in range(first_row // BLOCK_ROWS * BLOCK_ROWS, end_row, BLOCK_ROWS):
        generator = np.random.default_rng(
            [seed, block_start]
        )  # of torch's, the high half of a seed has no effect on a CPU
        values = (
            torch.from_numpy(generator.standard_normal((BLOCK_ROWS, rows_RD.shape[1]), dtype=np.float32))
            * std
        )
        start, end = max(first_row, block_start), min(end_row, block_start + BLOCK_ROWS)
        rows_RD[start - first_row : end - first_row] = values[start - block_start : end - block_start]
    if first_row == PADDING_ROW:
        rows_RD[PADDING_ROW] = 0.0
