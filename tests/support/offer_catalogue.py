"""A small catalogue of items and offers."""

from typing import Any

import pyarrow as pa

from passerelle.dataset import FeatureColumn

PLACE = pa.struct([("latitude", pa.float64()), ("longitude", pa.float64())])
ITEM_FEATURES = [FeatureColumn(name="kind", kind="categorical"), FeatureColumn(name="year", kind="numeric")]
PARIS = {"latitude": 48.8566, "longitude": 2.3522}
VERSAILLES = {"latitude": 48.8049, "longitude": 2.1204}
LYON = {"latitude": 45.7640, "longitude": 4.8357}

ITEMS = pa.table(
    {
        "item_id": [10, 11, 12, 13],
        "kind": ["book", "concert", "museum", None],
        "year": pa.array([2000, 2010, None, 2020]),
    }
)
OFFERS: list[dict[str, Any]] = [
    {
        "offer_id": "a",
        "item_id": 11,
        "price": 30.0,
        "place": PARIS,
        "starts": 100,
        "ends": 200,
        "tags": ["duo"],
    },
    {"offer_id": "b", "item_id": 11, "price": 10.0, "place": LYON, "starts": 150, "ends": None, "tags": []},
    {
        "offer_id": "c",
        "item_id": 10,
        "price": 5.0,
        "place": None,
        "starts": None,
        "ends": None,
        "tags": ["digital"],
    },
    {
        "offer_id": "d",
        "item_id": 12,
        "price": None,
        "place": VERSAILLES,
        "starts": None,
        "ends": 120,
        "tags": ["duo", "digital"],
    },
    {"offer_id": "e", "item_id": 99, "price": 1.0, "place": PARIS, "starts": 0, "ends": 1, "tags": []},
]
SCHEMA = pa.schema(
    [
        ("offer_id", pa.string()),
        ("item_id", pa.int64()),
        ("price", pa.float64()),
        ("place", PLACE),
        ("starts", pa.timestamp("ms")),
        ("ends", pa.timestamp("ms")),
        ("tags", pa.list_(pa.string())),
    ]
)


def record_of(item: dict[str, Any], offer: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the columns of an item and of one of its offers; None for an item without offers."""
    offers = {f"offer.{name}": None if offer is None else offer[name] for name in SCHEMA.names}
    return {**item, **offers}
