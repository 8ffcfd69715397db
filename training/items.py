"""The items of a model: their vectors in histories, and as answers, where queries find them.

Shape legend: R item rows (special rows included), D width, S code slots of a row, F numbers of a row.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from passerelle.encoding import FeatureEncoding
from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW
from training.config import RunConfig
from training.dropout import kept_rows
from training.towers import CandidateTower, Content

TABLE_STD = 0.02
"""Small beside Adam's steps, so that an item with few events loses its first, random vector (docs/decisions.md has the figures)."""


class Vectors(NamedTuple):
    """Of every item row, special ones included."""

    history_RD: Tensor
    """Of items in histories."""
    answers_RD: Tensor
    """Of items as answers: what queries are compared with."""


class Items(nn.Module, ABC):
    """Gives items their vectors."""

    @abstractmethod
    def of_step(self, seed: int) -> Vectors:
        """For a training step, whose noise `seed` decides."""

    @abstractmethod
    def exact(self) -> Vectors:
        """Without noise."""


class ItemContent(NamedTuple):
    """What the candidate tower is given of every item row."""

    encoding: FeatureEncoding
    codes_RS: Tensor
    """int64, of the encoding; 0 in the special rows."""
    numbers_RF: Tensor
    """float32, likewise."""
    known_R: Tensor
    """bool: special rows, and items that training has events of. Others have no vector of their own."""


class TableItems(Items):
    """One vector an item, or two, learnt for it alone."""

    def __init__(self, num_rows: int, dim: int, generator: torch.Generator, *, separate: bool) -> None:
        super().__init__()
        self.table_RD = item_table(num_rows, dim, generator)
        self.separate_table_RD = item_table(num_rows, dim, generator) if separate else None

    def of_step(self, seed: int) -> Vectors:
        return self.exact()

    def exact(self) -> Vectors:
        return Vectors(self.table_RD, self.table_RD if self.separate_table_RD is None else self.separate_table_RD)


class TowerItems(Items):
    """The candidate tower: a vector learnt for the item alone and what its features say, as one unit vector.

    Args:
        dim: D.
        content: what features say of every row.
        id_dropout: share of the items of a step whose own vector is left out.
        generator: draws the first weights.
    """

    def __init__(self, dim: int, content: ItemContent, id_dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.tower = CandidateTower(Content(content.encoding, dim, generator))
        self.table_RD = item_table(len(content.known_R), dim, generator)
        self.codes_RS: Tensor
        self.register_buffer("codes_RS", content.codes_RS, persistent=False)
        self.numbers_RF: Tensor
        self.register_buffer("numbers_RF", content.numbers_RF, persistent=False)
        self.known_R: Tensor
        self.register_buffer("known_R", content.known_R, persistent=False)
        self._id_dropout = id_dropout
        self._kept: Vectors | None = None

    def of_step(self, seed: int) -> Vectors:
        self._kept = None
        rows_R = torch.arange(len(self.table_RD), device=self.table_RD.device)
        return self._vectors(self.known_R & (kept_rows(rows_R, self._id_dropout, seed) | (rows_R < FIRST_ITEM_ROW)))

    def exact(self) -> Vectors:
        """Kept until the next step, where no gradient is wanted."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        vectors = self._vectors(self.known_R)
        if not torch.is_grad_enabled():
            self._kept = vectors
        return vectors

    def _vectors(self, with_id_R: Tensor) -> Vectors:
        vectors_RD = self.tower(self.table_RD * with_id_R[:, None], self.codes_RS, self.numbers_RF)
        return Vectors(vectors_RD, vectors_RD)


def make_items(config: RunConfig, num_rows: int, content: ItemContent | None, generator: torch.Generator) -> Items:
    """What a recipe wants its items to be; with `items.kind = "tower"`, `content` is there."""
    if config.items.kind == "tower":
        assert content is not None and len(content.known_R) == num_rows
        return TowerItems(config.model.dim, content, config.items.id_dropout, generator)
    return TableItems(num_rows, config.model.dim, generator, separate=config.model.output_table == "separate")


def item_table(num_rows: int, dim: int, generator: torch.Generator) -> nn.Parameter:
    """[R, D] first vectors; that of padding is zero."""
    table_RD = torch.empty(num_rows, dim)
    nn.init.trunc_normal_(table_RD, std=TABLE_STD, generator=generator)
    table_RD[PADDING_ROW] = 0.0
    return nn.Parameter(table_RD)
