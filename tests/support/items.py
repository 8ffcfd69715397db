"""Items with what tests of features, filters and titles need."""

import numpy as np
import pyarrow as pa

GENRES = ["Comédie", "Drama", "喜劇", "Western"]


def item_table(ids: pa.Array, rng: np.random.Generator) -> pa.Table:
    """Titles, zero to two genres, and a year that is sometimes unknown."""
    places = range(len(ids))
    genres = [
        [GENRES[genre] for genre in sorted(rng.choice(len(GENRES), size=place % 3, replace=False))]
        for place in places
    ]
    years = [None if place % 11 == 0 else int(1950 + rng.integers(70)) for place in places]
    return pa.table(
        {
            "item_id": ids,
            "title": [f"Title № {place}" for place in places],
            "genres": pa.array(genres, pa.list_(pa.string())),
            "year": pa.array(years, pa.int64()),
        }
    )
