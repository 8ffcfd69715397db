"""A table whose steps cost only the rows they look up: a TorchRec collection.

One rank holds an unsharded `EmbeddingCollection`.
Each backward pass takes one step of row-wise Adagrad with the summed gradient of each row, as FBGEMM's fused
tables do.

Shape legend: R rows, D width, U rows of a step (each once).
"""

import functools
import logging
import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from passerelle.errors import UserError
from passerelle.ids import PADDING_ROW
from training.tables.base import EmbeddingTable
from training.tables.files import Shard

TABLE = "item"
EPSILON = 1e-8
BLOCK_ROWS = 2**16


class SparseTable(EmbeddingTable):
    """Vectors by row, with one number of optimizer state for each row.

    Args:
        num_rows, dim: R and D.
        std: of the random initial vectors; that of the padding row is zero.
        seed: of these.
        learning_rate: of row-wise Adagrad, before `set_learning_rate_scale`.

    Raises:
        UserError: torchrec is not installed.
    """

    is_self_managed: ClassVar[bool] = True

    def __init__(self, num_rows: int, dim: int, *, std: float, seed: int, learning_rate: float) -> None:
        super().__init__(num_rows, dim)
        self.collection = empty_collection(num_rows, dim).to_empty(device="cpu")
        self.collection.embeddings[TABLE].sparse = True
        self.momentum_R: Tensor
        self.register_buffer("momentum_R", torch.zeros(num_rows))
        self._learning_rate, self._learning_rate_scale = learning_rate, 1.0
        with torch.no_grad():
            fill_rows(self.weight, 0, std, seed)
        self.weight.register_post_accumulate_grad_hook(self._step)

    @property
    def weight(self) -> nn.Parameter:
        """The parameter [R, D] of the collection."""
        weight: nn.Parameter = self.collection.embeddings[TABLE].weight
        return weight

    def forward(self, rows_U: Tensor) -> Tensor:
        """Returns the vectors [U, D] of distinct int64 rows."""
        vectors_UD: Tensor = self.collection(jagged_rows(rows_U))[TABLE].values()
        return vectors_UD

    def all_rows(self) -> Tensor:
        return self.weight

    @property
    def shards(self) -> list[Shard]:
        return [Shard(0, self.weight.detach(), self.momentum_R)]

    def set_learning_rate_scale(self, scale: float) -> None:
        self._learning_rate_scale = scale

    @torch.no_grad()
    def _step(self, weight: Tensor) -> None:
        """Takes a step of row-wise Adagrad.

        The state of a row is the sum over steps of its mean squared gradient.
        """
        assert weight.grad is not None
        gradient = weight.grad.coalesce()
        rows_U, gradient_UD = gradient.indices()[0], gradient.values()
        momentum_U = self.momentum_R[rows_U] + gradient_UD.square().mean(dim=1)
        self.momentum_R[rows_U] = momentum_U
        learning_rate = self._learning_rate * self._learning_rate_scale
        weight.index_add_(0, rows_U, gradient_UD * (-learning_rate / (momentum_U.sqrt() + EPSILON))[:, None])
        weight.grad = None


@functools.cache
def torchrec_package() -> Any:
    """Imports torchrec, which only recipes with a sparse table need.

    Raises:
        UserError: it is not installed.
    """
    # This logger warns about its own caller.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # FBGEMM's CPU build warns about each operator that it lacks.
        warnings.simplefilter("ignore")
        try:
            import torchrec
        except ImportError:
            raise UserError(
                "items.table = 'sparse' needs torchrec: `passerelle doctor` says how to install it"
            ) from None
    return torchrec


def empty_collection(num_rows: int, dim: int) -> Any:
    """Returns a collection of one table on the meta device, which takes no memory."""
    torchrec = torchrec_package()
    config = torchrec.EmbeddingConfig(
        name=TABLE, num_embeddings=num_rows, embedding_dim=dim, feature_names=[TABLE]
    )
    return torchrec.EmbeddingCollection([config], device=torch.device("meta"))


def jagged_rows(rows_U: Tensor) -> Any:
    """Returns int64 rows in the form that a collection looks up."""
    lengths = torch.full((1,), len(rows_U), dtype=torch.int64, device=rows_U.device)
    return torchrec_package().KeyedJaggedTensor([TABLE], rows_U, lengths=lengths)


def fill_rows(rows_SD: Tensor, first_row: int, std: float, seed: int) -> None:
    """Fills the rows from `first_row` on with normal numbers, and the padding row with zeros.

    A row gets the same numbers in whatever shard it is.
    Blocks of rows have seeds of their own, so that a shard draws only its own blocks.
    """
    end_row = first_row + len(rows_SD)
    for block_start in range(first_row // BLOCK_ROWS * BLOCK_ROWS, end_row, BLOCK_ROWS):
        # NumPy's generator: the high half of a seed has no effect on torch's on a CPU.
        generator = np.random.default_rng([seed, block_start])
        shape = (BLOCK_ROWS, rows_SD.shape[1])
        values = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)) * std
        start, end = max(first_row, block_start), min(end_row, block_start + BLOCK_ROWS)
        rows_SD[start - first_row : end - first_row] = values[start - block_start : end - block_start]
    if first_row == PADDING_ROW:
        rows_SD[PADDING_ROW] = 0.0
