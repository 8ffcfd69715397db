"""Last stage: the final order, and the caller's ids.

Shape legend: R item rows (special rows included), C candidates, D vector width.
"""

from dataclasses import dataclass

import numpy as np

from passerelle.bundle import Bundle
from passerelle.errors import UserError
from serving.catalogue import Catalogue, item_columns
from serving.columns import Columns, Float64Array, Mask
from serving.config import DEFAULT, ServingConfig
from serving.ordering_config import OrderingConfig
from serving.reranking import capped, maximal_marginal_relevance, mixed, pinned, unit_range
from serving.schemas import Item, Offer, Source, Why
from serving.stages import PINNED, Candidates, Float32Array, Int64Array


@dataclass(frozen=True)
class _Compiled:
    """An ordering with its columns by item row."""

    config: OrderingConfig
    boosts_R: tuple[Mask, ...]
    margin_R: Float64Array | None
    cap_groups_R: tuple[Int64Array, ...]
    mixing_groups_R: Int64Array | None


_PLAIN = _Compiled(OrderingConfig(), (), None, (), None)
MOST_DIVERSIFIED = 500
"""Candidates that mixing and marginal relevance choose from; the others come after them."""


class Ordering:
    """Puts the candidates in their final order and names where each one came from.

    Args:
        bundle: ids, item columns and vectors.
        config: the orderings of its playlists.

    Raises:
        UserError: an ordering names a column that is not there, or not of its kind.
    """

    def __init__(self, bundle: Bundle, config: ServingConfig | None = None) -> None:
        config = config or ServingConfig()
        self._item_ids = bundle.item_ids
        self._vectors_RD = np.asarray(bundle.vectors_RD)
        columns = item_columns(bundle)
        self._orderings = {name: _compiled(config.playlist(name).ordering, columns, name) for name in {DEFAULT, *config.playlists}}

    async def run(
        self, candidates: Candidates, scores_C: Float32Array, k: int, playlist: str | None = None, *, debug: bool = False
    ) -> tuple[Item, ...]:
        """The k best by score and the playlist's ordering, equal scores in the order of retrieval; fewer when there are fewer.

        Args:
            playlist: None orders by score alone.
        """
        ordering = self._orderings[playlist] if playlist is not None else _PLAIN
        config, rows_C = ordering.config, candidates.rows_C
        by_score = np.argsort(-scores_C, kind="stable")
        adjusted_C = self._adjusted(ordering, rows_C, scores_C)
        order: list[int] = np.argsort(-adjusted_C, kind="stable").tolist()
        for cap, groups_R in zip(config.caps, ordering.cap_groups_R, strict=True):
            order = capped(order, groups_R[rows_C], cap.most)
        # Nobody looks at more, and each place costs a look at all candidates.
        first, rest = order[:MOST_DIVERSIFIED], order[MOST_DIVERSIFIED:]
        if config.diversify == "mixing" and config.mixing is not None and ordering.mixing_groups_R is not None:
            first = mixed(first, ordering.mixing_groups_R[rows_C], k, window=config.mixing.window, most=config.mixing.most)
        elif config.diversify == "mmr":
            first = maximal_marginal_relevance(first, adjusted_C, self._vectors_RD[rows_C], k, config.mmr.relevance)
        order = [*first, *rest]
        pins = self._pins(config, candidates)
        order = pinned(order, pins, k) if config.pins else order[:k]
        found = [{int(row): rank for rank, row in enumerate(one.rows_K, start=1)} for one in candidates.found]
        places = np.empty(len(by_score), dtype=np.int64)
        places[by_score] = np.arange(1, len(by_score) + 1)
        items = []
        for rank, (item_id, position) in enumerate(zip(self._item_ids.ids(rows_C[order]), order, strict=True), start=1):
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
                    boosts=tuple(b.name for b, mask_R in zip(config.boosts, ordering.boosts_R, strict=True) if mask_R[row]),
                    margin=None if ordering.margin_R is None else float(ordering.margin_R[row]),
                    diversified_by=config.diversify,
                    pinned=any(position == pin for pin, _ in pins),
                )
            best = None if candidates.offers is None else candidates.offers[position]
            offer = None if best is None else Offer(**best)
            items.append(Item(item_id=item_id, rank=rank, score=float(scores_C[position]), sources=sources, offer=offer, why=why))
        return tuple(items)

    def _adjusted(self, ordering: _Compiled, rows_C: Int64Array, scores_C: Float32Array) -> Float64Array:
        """Scores after boosts and margin; as they are where there are none."""
        adjusted_C = scores_C.astype(np.float64)
        if not ordering.boosts_R and ordering.margin_R is None:
            return adjusted_C
        adjusted_C = np.asarray(unit_range(adjusted_C), dtype=np.float64)
        for boost, mask_R in zip(ordering.config.boosts, ordering.boosts_R, strict=True):
            adjusted_C = np.where(mask_R[rows_C], boost.factor * adjusted_C, adjusted_C)
        if ordering.margin_R is not None:
            adjusted_C = adjusted_C * ordering.margin_R[rows_C] ** float(ordering.config.margin_power)
        return adjusted_C

    def _pins(self, config: OrderingConfig, candidates: Candidates) -> list[tuple[int, int]]:
        """Positions of the pinned candidates that retrieval let through, and the places they are pinned to."""
        allowed = next((found.rows_K for found in candidates.found if found.source == PINNED), None)
        if allowed is None or not config.pins:
            return []
        rows = self._item_ids.rows([self._item_ids.parse(pin.item_id) for pin in config.pins])
        position_of = {int(row): position for position, row in enumerate(candidates.rows_C)}
        let_through = set(allowed.tolist())
        return [(position_of[row], pin.place) for pin, row in zip(config.pins, rows.tolist(), strict=True) if row in let_through]


def _compiled(config: OrderingConfig, columns: Columns, name: str) -> _Compiled:
    where = f"playlists.{name}.ordering"
    catalogue = Catalogue(columns)
    try:
        boosts_R = tuple(catalogue.eligible([boost.when]).rows_R for boost in config.boosts)
    except UserError as error:
        raise UserError(f"{where}.boosts: {error}") from None
    margin_R = None
    if config.margin_column is not None:
        catalogue.require(config.margin_column, ("numeric",), f"{where}.margin_column")
        margin_R = np.maximum(np.nan_to_num(columns.numbers(config.margin_column), nan=0.0), 0.0)
    caps = tuple(_groups(catalogue, cap.column, f"{where}.caps") for cap in config.caps)
    mixing = None if config.mixing is None else _groups(catalogue, config.mixing.column, f"{where}.mixing")
    return _Compiled(config, boosts_R, margin_R, caps, mixing)


def _groups(catalogue: Catalogue, column: str, where: str) -> Int64Array:
    catalogue.require(column, ("categorical",), where)
    return catalogue.items.groups(column)
