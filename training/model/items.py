"""The items of a model: their vectors in histories, and as answers, where queries find them.

Shape legend: R item rows (special rows included), U rows of a step (all of them, or those it needs), D width, S code slots of a row (or
rows of a shard), F numbers of a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from passerelle.encoding import FeatureEncoding
from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from training.config import Recipe
from training.model.dropout import kept_rows
from training.model.towers import CandidateTower, FeatureTower
from training.tables.sharded import ShardedTable
from training.tables.sparse import BLOCK_ROWS, MappedTable, SparseTable

TABLE_STD = 0.02
"""Small beside Adam's steps, so that an item with few events loses its first, random vector (docs/decisions.md has the figures)."""


class Vectors(NamedTuple):
    """Of all item rows, special ones included, or of some."""

    history_UD: Tensor
    """Of items in histories."""
    candidates_UD: Tensor
    """Of items as answers: what queries are compared with."""


@dataclass(frozen=True)
class StepItems:
    """The items of a training step."""

    vectors: Vectors
    rows_U: Tensor | None
    """int64 rows in ascending order, the special ones among them; None: all, each in its place."""

    def places(self, rows: Tensor) -> Tensor:
        """Where some of the rows that the step was made for are among its vectors; special rows are where they always are."""
        return rows if self.rows_U is None else torch.searchsorted(self.rows_U, rows)


class CandidatesShard(NamedTuple):
    """Vectors of a stretch of rows, as answers."""

    first_row: int
    candidates_SD: Tensor


class ItemFeatures(NamedTuple):
    """What the candidate tower is given of every item row."""

    encoding: FeatureEncoding
    codes_RS: Tensor
    """int64, of the encoding; 0 in the special rows."""
    numbers_RF: Tensor
    """float32, likewise."""
    known_R: Tensor
    """bool: special rows, and items that training has events of. Others have no vector of their own."""


class DenseTable(nn.Module):
    """Vectors by row, as a parameter like others: each step has a gradient of all rows."""

    def __init__(self, num_rows: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, dim))
        nn.init.trunc_normal_(self.weight, std=TABLE_STD, generator=generator)
        with torch.no_grad():
            self.weight[PADDING_ROW] = 0.0


IdTable = DenseTable | SparseTable | ShardedTable | MappedTable


class Items(nn.Module, ABC):
    """Gives items their vectors.

    Args:
        ids: what is learnt for each item alone: a table that is a parameter like others, a sparse one, or that of a finished run.
    """

    def __init__(self, ids: IdTable) -> None:
        super().__init__()
        self.ids = ids

    def for_step(self, seed: int, asked: Sequence[Tensor]) -> StepItems:
        """For a training step, whose noise `seed` decides and which needs the rows `asked` (int64, of any shapes, with repetitions)."""
        if isinstance(self.ids, DenseTable):
            return StepItems(self._for_step(None, seed), None)
        rows_U = _distinct(asked)
        return StepItems(self._for_step(rows_U, seed), rows_U)

    def exact_of(self, asked: Tensor) -> StepItems:
        """Without noise: all rows, or those `asked` where this rank does not have them all; then every rank must ask."""
        if not isinstance(self.ids, ShardedTable):
            return StepItems(self.exact(), None)
        rows_U = _distinct([asked])
        return StepItems(self._exact_of(rows_U), rows_U)

    def room(self) -> Tensor:
        """Something as large as the vectors of all rows, to write into: on disk where the table is."""
        assert not isinstance(self.ids, ShardedTable), "no rank has all rows"
        return self.ids.room() if isinstance(self.ids, MappedTable) else torch.empty_like(self.ids.weight)

    @abstractmethod
    def _for_step(self, rows_U: Tensor | None, seed: int) -> Vectors:
        """Of some rows, or of all."""

    @abstractmethod
    def _exact_of(self, rows_U: Tensor) -> Vectors:
        """Of some rows, without noise."""

    @abstractmethod
    def exact(self) -> Vectors:
        """Of all rows, without noise."""

    @abstractmethod
    def candidates_here(self) -> list[CandidatesShard]:
        """Those that this rank has, without noise."""


def _distinct(asked: Sequence[Tensor]) -> Tensor:
    """Rows in ascending order, the special ones among them."""
    special = torch.arange(FIRST_ITEM_ROW, device=asked[0].device)
    return torch.unique(torch.cat([special, *(rows.flatten() for rows in asked)]))


class TableItems(Items):
    """One vector an item, or two, learnt for it alone."""

    def __init__(self, ids: IdTable, answers: DenseTable | None) -> None:
        super().__init__(ids)
        self.answers = answers

    def _for_step(self, rows_U: Tensor | None, seed: int) -> Vectors:
        if rows_U is None:
            return self.exact()
        return self._exact_of(rows_U)

    def _exact_of(self, rows_U: Tensor) -> Vectors:
        vectors_UD = self.ids(rows_U)
        return Vectors(vectors_UD, vectors_UD)

    def candidates_here(self) -> list[CandidatesShard]:
        if isinstance(self.ids, ShardedTable):
            return [CandidatesShard(shard.first_row, shard.weight_SD) for shard in self.ids.shards]
        return [CandidatesShard(0, self.exact().candidates_UD)]

    def exact(self) -> Vectors:
        assert not isinstance(self.ids, ShardedTable), "no rank has all rows"
        return Vectors(self.ids.weight, self.ids.weight if self.answers is None else self.answers.weight)


class TowerItems(Items):
    """The candidate tower: a vector learnt for the item alone and what its features say, as one unit vector.

    Args:
        ids: the former.
        dim: D.
        content: what features say of every row.
        id_dropout: share of the items of a step whose own vector is left out.
        generator: draws the tower's first weights.
    """

    def __init__(
        self, ids: IdTable, dim: int, content: ItemFeatures, id_dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__(ids)
        self.encoding = content.encoding
        self.tower = CandidateTower(FeatureTower(content.encoding, dim, generator))
        self.codes_RS: Tensor
        self.register_buffer("codes_RS", content.codes_RS, persistent=False)
        self.numbers_RF: Tensor
        self.register_buffer("numbers_RF", content.numbers_RF, persistent=False)
        self.known_R: Tensor
        self.register_buffer("known_R", content.known_R, persistent=False)
        self._id_dropout = id_dropout
        self._kept: list[CandidatesShard] | None = None

    def _for_step(self, rows_U: Tensor | None, seed: int) -> Vectors:
        self._kept = None
        rows = torch.arange(len(self.known_R), device=self.known_R.device) if rows_U is None else rows_U
        given = self.inputs(rows_U)
        left_U = kept_rows(rows, self._id_dropout, seed) | (rows < FIRST_ITEM_ROW)
        vectors_UD = self.tower(given["id_vector"] * left_U[:, None], given["codes"], given["numbers"])
        return Vectors(vectors_UD, vectors_UD)

    def _exact_of(self, rows_U: Tensor) -> Vectors:
        vectors_UD = self.tower(**self.inputs(rows_U))
        return Vectors(vectors_UD, vectors_UD)

    def exact(self) -> Vectors:
        if torch.is_grad_enabled():
            all_RD = self.tower(**self.inputs())
            return Vectors(all_RD, all_RD)
        ((_, vectors_RD),) = self.candidates_here()
        return Vectors(vectors_RD, vectors_RD)

    @torch.no_grad()
    def candidates_here(self) -> list[CandidatesShard]:
        """Kept until the next step."""
        if self._kept is None:
            if isinstance(self.ids, ShardedTable):
                stored = [
                    (shard.first_row, shard.weight_SD, torch.empty_like(shard.weight_SD))
                    for shard in self.ids.shards
                ]
            else:
                stored = [(0, self.ids.weight, self.room())]
            for first_row, own_SD, found_SD in stored:
                for start in range(0, len(own_SD), BLOCK_ROWS):
                    block = slice(start, start + BLOCK_ROWS)
                    rows = slice(first_row + start, first_row + start + len(own_SD[block]))
                    found_SD[block] = self.tower(**self._inputs_of(own_SD[block], rows))
            self._kept = [CandidatesShard(first_row, found_SD) for first_row, _, found_SD in stored]
        return self._kept

    def inputs(self, rows_U: Tensor | slice | None = None) -> dict[str, Tensor]:
        """What the tower is given of some rows, or of all, without noise, by the names of its arguments."""
        if isinstance(rows_U, Tensor):
            return self._inputs_of(self.ids(rows_U), rows_U)
        assert not isinstance(self.ids, ShardedTable), "no rank has all rows"
        rows = slice(None) if rows_U is None else rows_U
        return self._inputs_of(self.ids.weight[rows], rows)

    def _inputs_of(self, own_UD: Tensor, rows_U: Tensor | slice) -> dict[str, Tensor]:
        return {
            "id_vector": own_UD * self.known_R[rows_U][:, None],
            "codes": self.codes_RS[rows_U],
            "numbers": self.numbers_RF[rows_U],
        }


def sparse_table(config: Recipe, num_rows: int, *, num_shards: int) -> SparseTable | ShardedTable | None:
    """What a recipe with `items.table = "sparse"` learns for each item alone, in so many shards; None for another."""
    if config.items.table != "sparse":
        return None
    table = SparseTable if num_shards == 1 else ShardedTable
    seed, learning_rate = config.training.seed, config.items.table_learning_rate
    return table(num_rows, config.model.dim, std=TABLE_STD, seed=seed, learning_rate=learning_rate)


def make_items(
    config: Recipe,
    num_rows: int,
    content: ItemFeatures | None,
    generator: torch.Generator,
    ids: IdTable | None = None,
) -> Items:
    """What a recipe wants its items to be; with `items.kind = "tower"`, `content` is there.

    Args:
        ids: what is learnt for each item alone, where that is not a `DenseTable`.
    """
    dim, items = config.model.dim, config.items
    assert (ids is None) == (items.table == "dense")
    if ids is None:
        ids = DenseTable(num_rows, dim, generator)
    if items.kind == "tower":
        assert content is not None and len(content.known_R) == num_rows
        return TowerItems(ids, dim, content, items.id_dropout, generator)
    separate = config.model.output_table == "separate"
    return TableItems(ids, DenseTable(num_rows, dim, generator) if separate else None)
