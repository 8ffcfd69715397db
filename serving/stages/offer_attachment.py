"""The offer that an answer carries for each item.

Shape legend: C candidates, G listings (see `serving.catalogue.catalogue`).
"""

from typing import Any

import numpy as np

from passerelle.arrays import Float64Array, Int64Array
from passerelle.ids import ITEM_ID
from serving.catalogue.catalogue import Catalogue, Eligible
from serving.catalogue.offers import OFFER_ID, PREFIX
from serving.eligibility_config import Offers


def attach_offers(
    config: Offers | None,
    catalogue: Catalogue,
    eligible: Eligible,
    point: tuple[float, float] | None,
    rows_C: Int64Array,
) -> tuple[dict[str, Any] | None, ...] | None:
    """Returns the best eligible offer of each candidate [C], as the fields of `Offer`.

    An item without an eligible offer has None; the result is None where items are not sold as offers.

    Args:
        point: latitude and longitude that distances are measured from; None without a place in the request.
    """
    if config is None or catalogue.offers is None:
        return None

    def distances_km(listings: Int64Array) -> Float64Array:
        assert point is not None and config.place_column is not None, "no point to measure from"
        return catalogue.distances_km(PREFIX + config.place_column, point, listings)

    def prices(listings: Int64Array) -> Float64Array:
        return catalogue.numbers(f"{PREFIX}{config.price_column}")[listings]

    near = [] if point is None or config.place_column is None else [distances_km]
    cheap = [] if config.price_column is None else [prices]
    keys = [*near, *cheap] if config.best_by == "nearest" else [*cheap, *near]
    listings_C = catalogue.best_offers(rows_C, eligible, keys)
    table = catalogue.offers.table
    records = table.take(np.maximum(listings_C, 0)).to_pylist() if table.num_rows else []
    distances_km_C = distances_km(listings_C) if near else np.full(len(listings_C), np.nan)
    attached: list[dict[str, Any] | None] = [None] * len(rows_C)
    for position in np.flatnonzero(listings_C >= 0):
        record, distance_km = records[position], distances_km_C[position]
        attached[position] = {
            "offer_id": record[OFFER_ID],
            "distance_km": None if np.isnan(distance_km) else float(distance_km),
            "values": {name: value for name, value in record.items() if name not in (OFFER_ID, ITEM_ID)},
        }
    return tuple(attached)
