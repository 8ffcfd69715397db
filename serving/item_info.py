"""Descriptions of items and of users' histories, from the bundle."""

from typing import Any

import numpy as np
import pyarrow as pa

from passerelle.bundle import Bundle, History
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID
from serving.schemas.base import ExternalId
from serving.schemas.recommend import HistoryEvent, HistoryResponse, ItemResponse


class UnknownItemError(UserError):
    """An item id that is not in the catalogue: HTTP 404."""


def item_row(bundle: Bundle, item_id: ExternalId) -> int:
    """Returns the row of an item.

    Raises:
        UnknownItemError: the item is not in the catalogue.
    """
    try:
        row = bundle.item_ids.row(bundle.item_ids.parse(item_id))
    except UserError as error:
        raise UnknownItemError(str(error)) from None
    if row == UNKNOWN_ROW:
        raise UnknownItemError(
            f"item_id {item_id!r}: not in the catalogue of {bundle.manifest.num_items} items"
        )
    return row


def describe_item(bundle: Bundle, item_id: ExternalId) -> ItemResponse:
    """Returns the title and the features of an item except vectors; missing and non-finite values are None.

    Raises:
        UnknownItemError: the item is not in the catalogue.
    """
    row: dict[str, Any] = bundle.items.slice(item_row(bundle, item_id) - FIRST_ITEM_ROW, 1).to_pylist()[0]
    manifest = bundle.manifest
    return ItemResponse(
        item_id=row[ITEM_ID],
        title=None if manifest.title is None else row[manifest.title],
        features={
            feature.name: to_json_value(row[feature.name])
            for feature in manifest.item_features
            if feature.kind != "vector"
        },
    )


def describe_history(bundle: Bundle, history: History) -> HistoryResponse:
    """Returns the events of a history with ids and titles, the newest first."""
    names, title = bundle.manifest.event_types, bundle.manifest.title
    items = bundle.items.take(pa.array(history.item_rows_L - FIRST_ITEM_ROW))
    titles = [None] * len(items) if title is None else items.column(title).to_pylist()
    columns = (
        bundle.item_ids.ids(history.item_rows_L),
        titles,
        history.event_types_L.tolist(),
        history.timestamps_ms_L.tolist(),
    )
    events = [
        HistoryEvent(item_id=item_id, title=text, event_type=names[code], timestamp_ms=timestamp_ms)
        for item_id, text, code, timestamp_ms in zip(*columns, strict=True)
    ]
    return HistoryResponse(events=tuple(reversed(events)))


def to_json_value(value: Any) -> Any:
    """Returns a value of an Arrow table as JSON can hold it."""
    if isinstance(value, list):
        return [to_json_value(element) for element in value]
    if isinstance(value, dict):
        return {name: to_json_value(element) for name, element in value.items()}
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
