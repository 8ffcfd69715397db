"""Last stage: the final order, and the caller's ids.

Shape legend: C candidates.
"""

import numpy as np

from passerelle.bundle import Bundle
from serving.schemas import Item, Source
from serving.stages import Candidates, Float32Array


class Ordering:
    """Puts the candidates in their final order and names where each one came from.

    Args:
        bundle: the map from rows to ids.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._item_ids = bundle.item_ids

    async def run(self, candidates: Candidates, scores_C: Float32Array, k: int) -> tuple[Item, ...]:
        """The k best by score, equal scores in the order of retrieval; fewer when there are fewer."""
        best = np.argsort(-scores_C, kind="stable")[:k]
        item_ids = self._item_ids.ids(candidates.rows_C[best])
        return tuple(
            Item(
                item_id=item_id,
                rank=place + 1,
                score=float(scores_C[position]),
                sources=(Source(name=candidates.source, rank=int(position) + 1, score=float(candidates.scores_C[position])),),
            )
            for place, (item_id, position) in enumerate(zip(item_ids, best, strict=True))
        )
