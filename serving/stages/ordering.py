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
    """An ordering with its columns, those of items by row."""

    config: OrderingConfig
    boosts_R: tuple[Mask, ...]
    margin: Callable[[Candidates], Float64Array] | None
    cap_groups: tuple[Groups, ...]
    mixing_groups: Groups | None
    pinned_rows: tuple[int, ...]


_PLAIN = _Compiled(OrderingConfig(), (), None, (), None, ())
MAX_DIVERSIFIED = 500
"""Candidates that mixing and marginal relevance choose from; the others come after them."""


class Ordering:
    """Puts the candidates in their final order and names where each one came from.

    Args:
        bundle: ids, item columns and vectors.
        config: the orderings of its playlists.
        items: the columns of items, where others share them.

    Raises:
        UserError: an ordering names a column that is not there, or not of its kind.
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
        config, rows_C = ordering.config, candidates.rows_C
        by_score = np.argsort(-scores_C, kind="stable")
        margin_C = None if ordering.margin is None else ordering.margin(candidates)
        adjusted_C = self._adjusted(ordering, rows_C, scores_C, margin_C)
        fills_up_C = np.arange(len(rows_C)) >= (
            len(rows_C) if candidates.num_found is None else candidates.num_found
        )
        order: list[int] = np.lexsort((-adjusted_C, fills_up_C)).tolist()
        for cap, groups in zip(config.caps, ordering.cap_groups, strict=True):
            order = capped(order, groups(candidates), cap.most)
        # Nobody looks at more, and each place costs a look at all candidates.
        first, rest = order[:MAX_DIVERSIFIED], order[MAX_DIVERSIFIED:]
        if config.diversify == "mixing" and config.mixing is not None and ordering.mixing_groups is not None:
            first = mixed(
                first,
                ordering.mixing_groups(candidates),
                k,
                window=config.mixing.window,
                most=config.mixing.most,
            )
        elif config.diversify == "mmr":
            first = maximal_marginal_relevance(
                first, adjusted_C, self._vectors_RD[rows_C], k, config.mmr.relevance
            )
        order = [*first, *rest]
        pins = _pins(ordering, candidates, k)
        order = pinned(order, pins, k) if config.pins else order[:k]
        found = [{int(row): rank for rank, row in enumerate(one.rows_K, start=1)} for one in candidates.found]
        places = np.empty(len(by_score), dtype=np.int64)
        places[by_score] = np.arange(1, len(by_score) + 1)
        items = []
        for rank, (item_id, position) in enumerate(
            zip(self._item_ids.ids(rows_C[order]), order, strict=True), start=1
        ):
            row = int(rows_C[position])
            sources = tuple(
                Source(name=one.source, rank=ranks[row], score=float(one.scores_K[ranks[row] - 1]))
                for one, ranks in zip(candidates.found, found, strict=True)
                if row in ranks
            )
            why = None
            if debug:
                why = Why(
                    place_by_score=int(places[position]),
                    retrieval_score=float(candidates.scores_C[position]),
                    adjusted_score=float(adjusted_C[position]),
                    boosts=tuple(
                        b.name
                        for b, mask_R in zip(config.boosts, ordering.boosts_R, strict=True)
                        if mask_R[row]
                    ),
                    margin=None if margin_C is None else float(margin_C[position]),
                    diversified_by=config.diversify,
                    pinned=any(position == pin for pin, _ in pins),
                )
            best = None if candidates.offers is None else candidates.offers[position]
            offer = None if best is None else Offer(**best)
            items.append(
                Item(
                    item_id=item_id,
                    rank=rank,
                    score=float(scores_C[position]),
                    sources=sources,
                    offer=offer,
                    why=why,
                )
            )
        return tuple(items)

    async def ready(self) -> bool:
        """Returns True: what it needs is loaded when it is made."""
        return True

    def _adjusted(
        self, ordering: _Compiled, rows_C: Int64Array, scores_C: Float32Array, margin_C: Float64Array | None
    ) -> Float64Array:
        """Scores after boosts and margin; as they are where there are none."""
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


def _pins(ordering: _Compiled, candidates: Candidates, k: int) -> list[tuple[int, int]]:
    """Positions of the pinned candidates that retrieval let through, and those of the k places that they are pinned to."""
    let_through = {int(row) for found in candidates.found if found.source == PINNED for row in found.rows_K}
    position_of = {
        int(row): position for position, row in enumerate(candidates.rows_C) if int(row) in let_through
    }
    pins = zip(ordering.config.pins, ordering.pinned_rows, strict=True)
    return [(position_of[row], pin.place) for pin, row in pins if row in let_through and pin.place <= k]


def _groups(catalogue: Catalogue, column: str, where: str) -> Groups:
    """The values of a column of single categories as numbers: of the items, or of the offers that were chosen for them."""
    if is_offers(column):  # retrieval, which knows the offers, has checked that it is there
        return lambda candidates: _numbered(_of_offers(candidates, column))
    catalogue.require(column, GROUP_KINDS, where)
    groups_R = catalogue.items.groups(column)
    return lambda candidates: groups_R[candidates.rows_C]


def _numbers(catalogue: Catalogue, column: str, where: str) -> Callable[[Candidates], Float64Array]:
    """The values of a column of numbers, at least 0, which also stands where there is none."""
    if is_offers(column):
        return lambda candidates: _not_negative(
            np.array([np.nan if value is None else value for value in _of_offers(candidates, column)])
        )
    catalogue.require(column, NUMBER_KINDS, where)
    values_R = _not_negative(catalogue.items.numbers(column))
    return lambda candidates: values_R[candidates.rows_C]


def _not_negative(values: Float64Array) -> Float64Array:
    return np.maximum(np.nan_to_num(values.astype(np.float64), nan=0.0), 0.0)


def _of_offers(candidates: Candidates, column: str) -> list[Any]:
    assert candidates.offers is not None, "no offers"
    return [
        None if offer is None else offer["values"].get(column.removeprefix(PREFIX))
        for offer in candidates.offers
    ]


def _numbered(values: Sequence[Any]) -> Int64Array:
    numbers: dict[Any, int] = {None: -1}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
