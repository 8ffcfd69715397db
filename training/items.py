"""The items of a model: their vectors in histories, and as answers, where queries find them.

Shape legend: R item rows (special rows included), U rows of a step (all of them, or those it needs), D width, S code slots of a row,
F numbers of a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from passerelle.encoding import FeatureEncoding
from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from training.config import RunConfig
from training.dropout import kept_rows
from training.sharding import ShardedTable
from training.tables import SparseTable
from training.towers import CandidateTower, Content

TABLE_STD = 0.02
"""Small beside Adam's steps, so that an item with few events loses its first, random vector (docs/decisions.md has the figures)."""


class Vectors(NamedTuple):
    """Of all item rows, special ones included, or of some."""

    history_UD: Tensor
    """Of items in histories."""
    answers_UD: Tensor
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


class ItemContent(NamedTuple):
    """What the candidate tower is given of every item row."""

    encoding: FeatureEncoding
    codes_RS: Tensor
    """int64, of the encoding; 0 in the special rows."""
    numbers_RF: Tensor
    """float32, likewise."""
    known_R: Tensor
    """bool: special rows, and items that training has events of. Others have no vector of their own."""


class Items(nn.Module, ABC):
    """Gives items their vectors.

    Args:
        ids: what is learnt for each item alone: a table that is a parameter like others, or a sparse one.
    """

    def __init__(self, ids: "DenseTable | SparseTable | ShardedTable") -> None:
        super().__init__()
        self.ids = ids

    def of_step(self, seed: int, asked: Sequence[Tensor]) -> StepItems:
        """For a training step, whose noise `seed` decides and which needs the rows `asked` (int64, of any shapes, with repetitions)."""
        if isinstance(self.ids, DenseTable):
            return StepItems(self._of_step(None, seed), None)
        special = torch.arange(FIRST_ITEM_ROW, device=asked[0].device)
        rows_U = torch.unique(torch.cat([special, *(rows.flatten() for rows in asked)]))
        return StepItems(self._of_step(rows_U, seed), rows_U)

    @abstractmethod
    def _of_step(self, rows_U: Tensor | None, seed: int) -> Vectors:
        """Of some rows, or of all."""

    @abstractmethod
    def exact(self) -> Vectors:
        """Of all rows, without noise."""


class DenseTable(nn.Module):
    """Vectors by row, as a parameter like others: each step has a gradient of all rows."""

    def __init__(self, num_rows: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, dim))
        nn.init.trunc_normal_(self.weight, std=TABLE_STD, generator=generator)
        with torch.no_grad():
            self.weight[PADDING_ROW] = 0.0


class TableItems(Items):
    """One vector an item, or two, learnt for it alone."""

    def __init__(self, ids: DenseTable | SparseTable | ShardedTable, answers: DenseTable | None) -> None:
        super().__init__(ids)
        self.answers = answers

    def _of_step(self, rows_U: Tensor | None, seed: int) -> Vectors:
        if rows_U is None:
            return self.exact()
        vectors_UD = self.ids(rows_U)
        return Vectors(vectors_UD, vectors_UD)

    def exact(self) -> Vectors:
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
        self, ids: DenseTable | SparseTable | ShardedTable, dim: int, content: ItemContent, id_dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__(ids)
        self.encoding = content.encoding
        self.tower = CandidateTower(Content(content.encoding, dim, generator))
        self.codes_RS: Tensor
        self.register_buffer("codes_RS", content.codes_RS, persistent=False)
        self.numbers_RF: Tensor
        self.register_buffer("numbers_RF", content.numbers_RF, persistent=False)
        self.known_R: Tensor
        self.register_buffer("known_R", content.known_R, persistent=False)
        self._id_dropout = id_dropout
        self._kept: Vectors | None = None

    def _of_step(self, rows_U: Tensor | None, seed: int) -> Vectors:
        self._kept = None
        rows = torch.arange(len(self.known_R), device=self.known_R.device) if rows_U is None else rows_U
        given = self.inputs(rows_U)
        left_U = kept_rows(rows, self._id_dropout, seed) | (rows < FIRST_ITEM_ROW)
        vectors_UD = self.tower(given["id_vector"] * left_U[:, None], given["codes"], given["numbers"])
        return Vectors(vectors_UD, vectors_UD)

    def exact(self) -> Vectors:
        """Kept until the next step, where no gradient is wanted."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        vectors_RD = self.tower(**self.inputs())
        vectors = Vectors(vectors_RD, vectors_RD)
        if not torch.is_grad_enabled():
            self._kept = vectors
        return vectors

    def inputs(self, rows_U: Tensor | None = None) -> dict[str, Tensor]:
        """What the tower is given of some rows, or of all, without noise, by the names of its arguments."""
        if rows_U is None:
            own_UD, known_U, codes_US, numbers_UF = self.ids.weight, self.known_R, self.codes_RS, self.numbers_RF
        else:
            own_UD, known_U, codes_US, numbers_UF = self.ids(rows_U), self.known_R[rows_U], self.codes_RS[rows_U], self.numbers_RF[rows_U]
        return {"id_vector": own_UD * known_U[:, None], "codes": codes_US, "numbers": numbers_UF}


def make_items(config: RunConfig, num_rows: int, content: ItemContent | None, generator: torch.Generator, *, num_shards: int = 1) -> Items:
    """What a recipe wants its items to be, a sparse table in so many shards; with `items.kind = "tower"`, `content` is there."""
    dim, items = config.model.dim, config.items
    ids: DenseTable | SparseTable | ShardedTable
    if items.table == "sparse":
        ids = (SparseTable if num_shards == 1 else ShardedTable)(
            num_rows, dim, std=TABLE_STD, seed=config.training.seed, learning_rate=items.table_learning_rate
        )
    else:
        ids = DenseTable(num_rows, dim, generator)
    if items.kind == "tower":
        assert content is not None and len(content.known_R) == num_rows
        return TowerItems(ids, dim, content, items.id_dropout, generator)
    separate = config.model.output_table == "separate"
    return TableItems(ids, DenseTable(num_rows, dim, generator) if separate else None)
