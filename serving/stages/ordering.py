"""Last stage: the final order, and the caller's ids.

Shape legend: R item rows (special rows included), C candidates, D vector width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passerelle.arrays import Float32Array, Float64Array, Int64Array
from passerelle.bundle import Bundle
from passerelle.errors import UserError
from serving.catalogue.catalogue import Catalogue, item_columns
from serving.catalogue.columns import Columns, Mask
from serving.catalogue.offers import PREFIX, is_offers
from serving.config import DEFAULT, ServingConfig
from serving.ordering_config import GROUP_KINDS, NUMBER_KINDS, OrderingConfig
from serving.schemas.recommend import Item, Offer, Source, Why
from serving.stages.reranking import capped, maximal_marginal_relevance, mixed, pinned, unit_range
from serving.stages.types import PINNED, Candidates, RequestTime

Groups = Callable[[Candidates], Int64Array]
"""[C], -1 where there is no value."""


@dataclass(frozen=True)
class _Compiled:
    """An ordering with the columns that it reads, those of items by row."""

    config: OrderingConfig
    boosts_R: tuple[Mask, ...]
    margin: Callable[[Candidates], Float64Array] | None
    cap_groups: tuple[Groups, ...]
    mixing_groups: Groups | None
    pinned_rows: tuple[int, ...]


_PLAIN = _Compiled(OrderingConfig(), (), None, (), None, ())
MAX_DIVERSIFIED = 500
"""Candidates that mixing and marginal relevance choose from; the others come after them.

Users look at fewer, and each position costs a pass over all candidates.
"""


class Ordering:
    """Puts the candidates in their final order and names the sources of each.

    Args:
        bundle: ids, item columns and vectors.
        config: the orderings of its playlists.
        items: the columns of items, where other stages share them.

    Raises:
        UserError: an ordering names a column that does not exist, or is of another kind.
    """

    def __init__(
        self, bundle: Bundle, config: ServingConfig | None = None, items: Columns | None = None
    ) -> None:
        config = config or ServingConfig()
        self._item_ids = bundle.item_ids
        self._vectors_RD = np.asarray(bundle.vectors_RD)
        columns = items or item_columns(bundle)
        self._orderings = {
            name: self._compiled(config.playlist(name).ordering, columns, name)
            for name in {DEFAULT, *config.playlists}
        }

    async def run(
        self,
        candidates: Candidates,
        scores_C: Float32Array,
        k: int,
        request_time: RequestTime,
        playlist: str | None = None,
        *,
        debug: bool = False,
    ) -> tuple[Item, ...]:
        """Returns the first k by score and the playlist's ordering, equal scores in the order of retrieval.

        There are fewer items when there are fewer candidates.

        Args:
            request_time: of the request, as every stage gets it.
            playlist: None orders by score alone.
        """
        ordering = self._orderings[playlist] if playlist is not None else _PLAIN
        margin_C = None if ordering.margin is None else ordering.margin(candidates)
        adjusted_C = self._adjusted(ordering, candidates.rows_C, scores_C, margin_C)
        order = self._order(ordering, candidates, adjusted_C, k)
        pins = _pins(ordering, candidates, k)
        order = pinned(order, pins, k) if ordering.config.pins else order[:k]
        reasons: list[Why | None] = [None] * len(order)
        if debug:
            reasons = _reasons(ordering, candidates, order, _Scores(scores_C, adjusted_C, margin_C), pins)
        ranks = [{int(row): rank for rank, row in enumerate(one.rows_K, start=1)} for one in candidates.found]
        rows_K = candidates.rows_C[order]
        items = []
        for rank, (index, row, item_id, why) in enumerate(
            zip(order, rows_K.tolist(), self._item_ids.ids(rows_K), reasons, strict=True), start=1
        ):
            sources = tuple(
                Source(name=one.source, rank=rank_of[row], score=float(one.scores_K[rank_of[row] - 1]))
                for one, rank_of in zip(candidates.found, ranks, strict=True)
                if row in rank_of
            )
            best = None if candidates.offers is None else candidates.offers[index]
            items.append(
                Item(
                    item_id=item_id,
                    rank=rank,
                    score=float(scores_C[index]),
                    sources=sources,
                    offer=None if best is None else Offer(**best),
                    why=why,
                )
            )
        return tuple(items)

    async def ready(self) -> bool:
        """Returns True: what it needs is loaded when it is made."""
        return True

    def _order(
        self, ordering: _Compiled, candidates: Candidates, adjusted_C: Float64Array, k: int
    ) -> list[int]:
        """Returns indices of candidates, best first, after caps and diversification."""
        config, rows_C = ordering.config, candidates.rows_C
        num_found = len(rows_C) if candidates.num_found is None else candidates.num_found
        is_fill_C = np.arange(len(rows_C)) >= num_found
        order: list[int] = np.lexsort((-adjusted_C, is_fill_C)).tolist()
        for cap, groups in zip(config.caps, ordering.cap_groups, strict=True):
            order = capped(order, groups(candidates), cap.max_items)
        first, rest = order[:MAX_DIVERSIFIED], order[MAX_DIVERSIFIED:]
        if config.diversify == "mixing" and config.mixing is not None and ordering.mixing_groups is not None:
            groups_C = ordering.mixing_groups(candidates)
            window, max_items = config.mixing.window, config.mixing.max_items
            first = mixed(first, groups_C, k, window=window, max_items=max_items)
        elif config.diversify == "mmr":
            first = maximal_marginal_relevance(
                first, adjusted_C, self._vectors_RD[rows_C], k, config.mmr.relevance
            )
        return [*first, *rest]

    def _adjusted(
        self, ordering: _Compiled, rows_C: Int64Array, scores_C: Float32Array, margin_C: Float64Array | None
    ) -> Float64Array:
        """Returns scores after boosts and margin; unchanged where there are none."""
        adjusted_C = scores_C.astype(np.float64)
        if not ordering.boosts_R and margin_C is None:
            return adjusted_C
        adjusted_C = np.asarray(unit_range(adjusted_C), dtype=np.float64)
        for boost, mask_R in zip(ordering.config.boosts, ordering.boosts_R, strict=True):
            adjusted_C = np.where(mask_R[rows_C], boost.factor * adjusted_C, adjusted_C)
        if margin_C is not None:
            adjusted_C = adjusted_C * margin_C ** float(ordering.config.margin_power)
        return adjusted_C

    def _compiled(self, config: OrderingConfig, columns: Columns, name: str) -> _Compiled:
        where = f"playlists.{name}.ordering"
        catalogue = Catalogue(columns)
        try:
            boosts_R = tuple(catalogue.eligible([boost.when]).rows_R for boost in config.boosts)
        except UserError as error:
            raise UserError(f"{where}.boosts: {error}") from None
        margin = (
            None
            if config.margin_column is None
            else _numbers(catalogue, config.margin_column, f"{where}.margin_column")
        )
        caps = tuple(_groups(catalogue, cap.column, f"{where}.caps") for cap in config.caps)
        mixing = (
            None if config.mixing is None else _groups(catalogue, config.mixing.column, f"{where}.mixing")
        )
        pinned_rows = self._item_ids.rows([self._item_ids.parse(pin.item_id) for pin in config.pins]).tolist()
        return _Compiled(config, boosts_R, margin, caps, mixing, tuple(pinned_rows))


@dataclass(frozen=True)
class _Scores:
    """Scores of the candidates before and after boosts and margin."""

    scores_C: Float32Array
    adjusted_C: Float64Array
    margin_C: Float64Array | None


def _reasons(
    ordering: _Compiled,
    candidates: Candidates,
    order: Sequence[int],
    scores: _Scores,
    pins: Sequence[tuple[int, int]],
) -> list[Why | None]:
    """Returns the explanation of each item of an order."""
    config = ordering.config
    by_score = np.argsort(-scores.scores_C, kind="stable")
    positions_C = np.empty(len(by_score), dtype=np.int64)
    positions_C[by_score] = np.arange(1, len(by_score) + 1)
    pinned_indices = {index for index, _ in pins}
    return [
        Why(
            position_by_score=int(positions_C[index]),
            retrieval_score=float(candidates.scores_C[index]),
            adjusted_score=float(scores.adjusted_C[index]),
            boosts=tuple(
                boost.name
                for boost, mask_R in zip(config.boosts, ordering.boosts_R, strict=True)
                if mask_R[candidates.rows_C[index]]
            ),
            margin=None if scores.margin_C is None else float(scores.margin_C[index]),
            diversified_by=config.diversify,
            pinned=index in pinned_indices,
        )
        for index in order
    ]


def _pins(ordering: _Compiled, candidates: Candidates, k: int) -> list[tuple[int, int]]:
    """Returns the index and the position, at most k, of each pinned candidate that retrieval allowed."""
    allowed = {int(row) for found in candidates.found if found.source == PINNED for row in found.rows_K}
    index_of = {int(row): index for index, row in enumerate(candidates.rows_C) if int(row) in allowed}
    pins = zip(ordering.config.pins, ordering.pinned_rows, strict=True)
    return [(index_of[row], pin.position) for pin, row in pins if row in allowed and pin.position <= k]


def _groups(catalogue: Catalogue, column: str, where: str) -> Groups:
    """Returns a reader of a column of single categories as codes: of the items, or of their offers."""
    # Retrieval, which reads the offers, has checked that the column of offers exists.
    if is_offers(column):
        return lambda candidates: _codes(_offer_values(candidates, column))
    catalogue.require(column, GROUP_KINDS, where)
    groups_R = catalogue.items.groups(column)
    return lambda candidates: groups_R[candidates.rows_C]


def _numbers(catalogue: Catalogue, column: str, where: str) -> Callable[[Candidates], Float64Array]:
    """Returns a reader of a column of numbers, at least 0, and 0 for missing ones."""
    if is_offers(column):
        return lambda candidates: _not_negative(
            np.array([np.nan if value is None else value for value in _offer_values(candidates, column)])
        )
    catalogue.require(column, NUMBER_KINDS, where)
    values_R = _not_negative(catalogue.items.numbers(column))
    return lambda candidates: values_R[candidates.rows_C]


def _not_negative(values: Float64Array) -> Float64Array:
    return np.maximum(np.nan_to_num(values.astype(np.float64), nan=0.0), 0.0)


def _offer_values(candidates: Candidates, column: str) -> list[Any]:
    assert candidates.offers is not None, "no offers"
    return [
        None if offer is None else offer["values"].get(column.removeprefix(PREFIX))
        for offer in candidates.offers
    ]


def _codes(values: Sequence[Any]) -> Int64Array:
    codes: dict[Any, int] = {None: -1}
    return np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int64)
