"""Item rows of pinned items.

Shape legend: R item rows (special rows included), P pinned items.
"""

import numpy as np

from passerelle.arrays import Int64Array
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, IdMap
from serving.catalogue.columns import Mask
from serving.config import Playlist, ServingConfig
from serving.ordering_config import Pin


class PinnedRows:
    """The rows of the items that playlists pin.

    Args:
        config: the playlists.
        item_ids: ids of the items.

    Raises:
        UserError: a pinned item is not in the catalogue, or a playlist pins an item twice.
    """

    def __init__(self, config: ServingConfig, item_ids: IdMap) -> None:
        self._rows: dict[int | str, int] = {}
        for name, playlist in config.playlists.items():
            rows = [self._add(pin, item_ids) for pin in playlist.ordering.pins]
            if len(set(rows)) < len(rows):
                raise UserError(f"playlists.{name}.ordering.pins: an item is pinned twice")

    def allowed_P(self, playlist: Playlist, allowed_R: Mask) -> Int64Array:
        """Returns the rows of the pinned items of a playlist that are allowed, in the order of its pins."""
        rows = (self._rows[pin.item_id] for pin in playlist.ordering.pins)
        return np.array([row for row in rows if allowed_R[row]], dtype=np.int64)

    def _add(self, pin: Pin, item_ids: IdMap) -> int:
        row = item_ids.row(item_ids.parse(pin.item_id))
        if row == UNKNOWN_ROW:
            raise UserError(f"playlists: pinned item {pin.item_id!r} is not in the catalogue")
        self._rows[pin.item_id] = row
        return row
