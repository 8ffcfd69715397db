"""Offers of the items of a test bundle."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from passerelle.bundle import Bundle
from passerelle.calendar_time import HOUR_MS

PARIS, LYON = (48.8566, 2.3522), (45.7640, 4.8357)
NOW_MS = 1_700_000_000_000


def write_offers(bundle: Bundle, path: Path) -> Path:
    """Writes two offers for each item but every seventh, at times around now.

    One is expensive and in Paris, the other cheap and in Lyon.
    """
    rows = []
    for position, item_id in enumerate(bundle.items.column("item_id").to_pylist()):
        if position % 7 == 0:
            continue
        for city, (latitude, longitude) in (("paris", PARIS), ("lyon", LYON)):
            rows.append(
                {
                    "offer_id": f"{item_id}-{city}",
                    "item_id": item_id,
                    "price": float(position % 40 + (20 if city == "paris" else 0)),
                    "stock": position % 5,
                    "min_age": 18 if position % 11 == 0 else None,
                    "starts": NOW_MS + (position - 150) * HOUR_MS,
                    "place": {"latitude": latitude + position / 1000, "longitude": longitude},
                }
            )
    schema = pa.schema(
        [
            ("offer_id", pa.string()),
            ("item_id", pa.int64()),
            ("price", pa.float64()),
            ("stock", pa.int64()),
            ("min_age", pa.int64()),
            ("starts", pa.timestamp("ms")),
            ("place", pa.struct([("latitude", pa.float64()), ("longitude", pa.float64())])),
        ]
    )
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path
