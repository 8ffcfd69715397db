"""Items with features, for tests of features, filters and titles."""

import numpy as np
import pyarrow as pa

GENRES = ["Comédie", "Drama", "喜劇", "Western"]


def item_table(ids: pa.Array, rng: np.random.Generator) -> pa.Table:
    """Returns items with titles, zero to two genres, and years, some of them missing."""
    positions = range(len(ids))
    genres = [
        [GENRES[genre] for genre in sorted(rng.choice(len(GENRES), size=position % 3, replace=False))]
        for position in positions
    ]
    years = [None if position % 11 == 0 else int(1950 + rng.integers(70)) for position in positions]
    return pa.table(
        {
            "item_id": ids,
            "title": [f"Title № {position}" for position in positions],
            "genres": pa.array(genres, pa.list_(pa.string())),
            "year": pa.array(years, pa.int64()),
        }
    )
