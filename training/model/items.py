"""The items of a model: their vectors in histories and as candidates, which queries are compared with.

Shape legend: R item rows (special rows included), U rows of a step (all rows, or those it needs), D width,
S code slots of a row (or rows of a shard), F numbers of a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from passerelle.encoding import FeatureEncoding
from passerelle.ids import FIRST_ITEM_ROW
from training.config import Recipe
from training.model.dropout import keep_mask
from training.model.towers import CandidateTower, FeatureTower
from training.tables.base import INITIAL_STD, EmbeddingTable
from training.tables.dense import DenseTable
from training.tables.sharded import ShardedTable
from training.tables.sparse import BLOCK_ROWS, SparseTable


class Vectors(NamedTuple):
    """Vectors of all item rows, special ones included, or of some."""

    history_UD: Tensor
    """Vectors of items in histories."""
    candidates_UD: Tensor
    """Vectors of items as candidates."""


@dataclass(frozen=True)
class StepItems:
    """The vectors that a step needs."""

    vectors: Vectors
    rows_U: Tensor | None
    """int64 rows of the vectors, ascending, special rows first; None: all rows."""

    def positions(self, rows: Tensor) -> Tensor:
        """Returns the positions of requested rows among the vectors.

        Those of the special rows are the rows themselves.
        """
        return rows if self.rows_U is None else torch.searchsorted(self.rows_U, rows)


class CandidatesShard(NamedTuple):
    """Candidate vectors of consecutive rows."""

    first_row: int
    candidates_SD: Tensor


class ItemFeatures(NamedTuple):
    """The encoded features of every item row, for the candidate tower."""

    encoding: FeatureEncoding
    codes_RS: Tensor
    """int64; 0 in the special rows."""
    numbers_RF: Tensor
    """float32; 0 in the special rows."""
    known_R: Tensor
    """bool: special rows, and items with training events; only these have an id vector."""


class Items(nn.Module, ABC):
    """Gives items their vectors.

    Args:
        ids: the table of id vectors, one for each item row.
    """

    def __init__(self, ids: EmbeddingTable) -> None:
        super().__init__()
        self.ids = ids

    def for_step(self, seed: int, requested: Sequence[Tensor]) -> StepItems:
        """Returns the vectors for a training step.

        Args:
            seed: decides the noise.
            requested: int64 rows that the step needs, of any shapes, with repetitions.
        """
        rows_U = None if self.ids.updates_all_rows else _distinct(requested)
        return StepItems(self._noisy_vectors(rows_U, seed), rows_U)

    def exact_for(self, requested: Tensor) -> StepItems:
        """Returns vectors without noise.

        These are all rows, or the requested ones where this rank does not hold all: then a collective call.
        """
        if self.ids.holds_all_rows:
            return StepItems(self.exact(), None)
        rows_U = _distinct([requested])
        return StepItems(self._exact_vectors(rows_U), rows_U)

    @property
    def candidate_tower(self) -> "TowerItems | None":
        """These items, if a candidate tower computes their vectors."""
        return None

    @abstractmethod
    def exact(self) -> Vectors:
        """Returns the vectors of all rows, without noise; only where this rank holds all rows."""

    @abstractmethod
    def local_candidates(self) -> list[CandidatesShard]:
        """Returns the candidate vectors of the rows that this rank holds, without noise."""

    @abstractmethod
    def _noisy_vectors(self, rows_U: Tensor | None, seed: int) -> Vectors:
        """Returns the vectors of some rows, or of all, for a training step."""

    @abstractmethod
    def _exact_vectors(self, rows_U: Tensor) -> Vectors:
        """Returns the vectors of some rows, without noise."""


def _distinct(requested: Sequence[Tensor]) -> Tensor:
    """Returns the requested rows and the special ones, each once, ascending."""
    special = torch.arange(FIRST_ITEM_ROW, device=requested[0].device)
    return torch.unique(torch.cat([special, *(rows.flatten() for rows in requested)]))


class TableItems(Items):
    """Items with vectors of their own: one each, or one in histories and one as a candidate.

    Args:
        ids: the table of vectors in histories.
        answers: the table of candidate vectors; None: that of vectors in histories.
    """

    def __init__(self, ids: EmbeddingTable, answers: DenseTable | None) -> None:
        super().__init__(ids)
        # Checkpoints hold the table under this name.
        self.answers = answers

    def exact(self) -> Vectors:
        history_RD = self.ids.all_rows()
        return Vectors(history_RD, history_RD if self.answers is None else self.answers.all_rows())

    def local_candidates(self) -> list[CandidatesShard]:
        table = self.ids if self.answers is None else self.answers
        return [CandidatesShard(shard.first_row, shard.weight_SD) for shard in table.shards]

    def _noisy_vectors(self, rows_U: Tensor | None, seed: int) -> Vectors:
        return self.exact() if rows_U is None else self._exact_vectors(rows_U)

    def _exact_vectors(self, rows_U: Tensor) -> Vectors:
        vectors_UD = self.ids(rows_U)
        return Vectors(vectors_UD, vectors_UD)


class TowerItems(Items):
    """Items whose unit vectors a candidate tower computes from their id vectors and features.

    Args:
        ids: the table of id vectors.
        item_features: of every row.
        id_dropout: share of the items of a step whose id vector is left out.
        generator: draws the initial weights of the tower.
    """

    def __init__(
        self,
        ids: EmbeddingTable,
        item_features: ItemFeatures,
        id_dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(ids)
        self.encoding = item_features.encoding
        self.tower = CandidateTower(FeatureTower(self.encoding, ids.dim, generator))
        self.codes_RS: Tensor
        self.register_buffer("codes_RS", item_features.codes_RS, persistent=False)
        self.numbers_RF: Tensor
        self.register_buffer("numbers_RF", item_features.numbers_RF, persistent=False)
        self.known_R: Tensor
        self.register_buffer("known_R", item_features.known_R, persistent=False)
        self._id_dropout = id_dropout
        self._candidates_cache: list[CandidatesShard] | None = None

    @property
    def candidate_tower(self) -> "TowerItems":
        return self

    def exact(self) -> Vectors:
        if torch.is_grad_enabled():
            vectors_RD = self.tower(**self.inputs())
        else:
            ((_, vectors_RD),) = self.local_candidates()
        return Vectors(vectors_RD, vectors_RD)

    @torch.no_grad()
    def local_candidates(self) -> list[CandidatesShard]:
        """Returns the vectors of this rank's rows, which are cached until the next step."""
        if self._candidates_cache is None:
            self._candidates_cache = [
                CandidatesShard(shard.first_row, self._vectors_in_blocks(shard.first_row, shard.weight_SD))
                for shard in self.ids.shards
            ]
        return self._candidates_cache

    def _vectors_in_blocks(self, first_row: int, id_vectors_SD: Tensor) -> Tensor:
        vectors_SD = self.ids.allocate_like(id_vectors_SD)
        for start in range(0, len(id_vectors_SD), BLOCK_ROWS):
            block_BD = id_vectors_SD[start : start + BLOCK_ROWS]
            rows = slice(first_row + start, first_row + start + len(block_BD))
            vectors_SD[start : start + BLOCK_ROWS] = self.tower(**self._inputs(block_BD, rows))
        return vectors_SD

    def _noisy_vectors(self, rows_U: Tensor | None, seed: int) -> Vectors:
        self._candidates_cache = None
        if rows_U is None:
            inputs = self.inputs()
            rows_U = torch.arange(len(self.known_R), device=self.known_R.device)
        else:
            inputs = self._inputs(self.ids(rows_U), rows_U)
        keep_U = keep_mask(rows_U, self._id_dropout, seed) | (rows_U < FIRST_ITEM_ROW)
        vectors_UD = self.tower(inputs["id_vector"] * keep_U[:, None], inputs["codes"], inputs["numbers"])
        return Vectors(vectors_UD, vectors_UD)

    def _exact_vectors(self, rows_U: Tensor) -> Vectors:
        vectors_UD = self.tower(**self._inputs(self.ids(rows_U), rows_U))
        return Vectors(vectors_UD, vectors_UD)

    def inputs(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Returns the arguments of the tower for consecutive rows, without noise, by name."""
        return self._inputs(self.ids.all_rows()[rows], rows)

    def _inputs(self, id_vectors_UD: Tensor, rows: Tensor | slice) -> dict[str, Tensor]:
        return {
            "id_vector": id_vectors_UD * self.known_R[rows][:, None],
            "codes": self.codes_RS[rows],
            "numbers": self.numbers_RF[rows],
        }


def make_sparse_table(config: Recipe, num_rows: int, *, num_shards: int) -> SparseTable | ShardedTable | None:
    """Returns the id table of a recipe with `items.table = "sparse"`; None for other recipes.

    Args:
        num_shards: ranks that share its rows.
    """
    if config.items.table != "sparse":
        return None
    table = SparseTable if num_shards == 1 else ShardedTable
    seed, learning_rate = config.training.seed, config.items.table_learning_rate
    return table(num_rows, config.model.dim, std=INITIAL_STD, seed=seed, learning_rate=learning_rate)


def make_items(
    config: Recipe,
    num_rows: int,
    item_features: ItemFeatures | None,
    generator: torch.Generator,
    ids: EmbeddingTable | None = None,
) -> Items:
    """Returns the items of a recipe.

    Args:
        item_features: needed with `items.kind = "tower"`.
        ids: the id table, for a recipe with `items.table = "sparse"`.
    """
    dim, items = config.model.dim, config.items
    assert (ids is None) == (items.table == "dense")
    if ids is None:
        ids = DenseTable(num_rows, dim, generator)
    if items.kind == "tower":
        assert item_features is not None and len(item_features.known_R) == num_rows
        return TowerItems(ids, item_features, items.id_dropout, generator)
    separate = config.model.output_table == "separate"
    return TableItems(ids, DenseTable(num_rows, dim, generator) if separate else None)
