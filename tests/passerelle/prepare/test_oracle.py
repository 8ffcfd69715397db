"""The pipeline against a slow one that goes row by row."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.ids import FIRST_ITEM_ROW
from passerelle.prepare import prepare
from passerelle.prepare.config import FiltersConfig
from passerelle.prepare.filters import select_events
from tests.passerelle.conftest import config_of

Row = tuple[str, str, int, str]  # user, item, time in seconds, type

IDS = ["a", "B", "10", "9", "é", "日本", "👍", " a", "a,b"]
WEIGHTS = {"buy": 5.0, "view": 1.0}


def oracle(rows: list[Row], filters: FiltersConfig) -> tuple[list[Row], Counter[str]]:
    """Rows that stay, by user and time, and the count of what went, one row at a time."""
    dropped: Counter[str] = Counter()
    rows = [row for row in rows if row[3] in WEIGHTS or dropped.update(["event_type_not_listed"])]
    rows = [
        rows[position]
        for position in sorted(
            range(len(rows)), key=lambda position: (rows[position][0], rows[position][2], position)
        )
    ]
    kept: list[Row] = []
    seen: set[Row] = set()
    for row in rows:
        if filters.drop_duplicates and row in seen:
            dropped["duplicate"] += 1
        elif filters.first_event_per_pair and any(row[:2] == other[:2] for other in kept):
            dropped["repeat_of_a_pair"] += 1
        else:
            kept.append(row)
        seen.add(row)
    while True:
        before = len(kept)
        for column, minimum, reason in (
            (1, filters.min_item_events, "item_below_minimum"),
            (0, filters.min_user_events, "user_below_minimum"),
        ):
            counts = Counter(row[column] for row in kept)
            dropped[reason] += sum(counts[row[column]] < minimum for row in kept)
            kept = [row for row in kept if counts[row[column]] >= minimum]
        if not filters.iterate or len(kept) == before:
            return kept, dropped


rows_of_a_log = st.lists(
    st.tuples(
        st.sampled_from(IDS[:5]),
        st.sampled_from(IDS),
        st.integers(-2, 3),
        st.sampled_from(["view", "buy", "hover"]),
    ),
    max_size=60,
)
some_filters = st.builds(
    FiltersConfig,
    drop_duplicates=st.booleans(),
    first_event_per_pair=st.booleans(),
    min_item_events=st.integers(1, 4),
    min_user_events=st.integers(1, 4),
    iterate=st.booleans(),
)


@given(rows_of_a_log, some_filters)
@settings(max_examples=300, deadline=None)
def test_selection_equals_oracle(rows: list[Row], filters: FiltersConfig) -> None:
    rows = [row for row in rows if row[3] in WEIGHTS]
    users, items, types = (sorted({row[column] for row in rows}) for column in (0, 1, 3))
    codes = [
        np.array([known.index(row[column]) for row in rows], dtype=np.int32)
        for known, column in ((users, 0), (items, 1), (types, 3))
    ]
    positions, dropped = select_events(
        codes[0], codes[1], np.array([row[2] for row in rows], dtype=np.int64), codes[2], filters
    )
    expected, expected_dropped = oracle(rows, filters)
    assert [rows[position] for position in positions] == expected
    assert +Counter(dropped) == +expected_dropped


@given(rows_of_a_log.filter(lambda rows: oracle(rows, FiltersConfig())[0] != []), some_filters)
@settings(max_examples=40, deadline=None)
def test_dataset_equals_oracle(rows: list[Row], filters: FiltersConfig) -> None:
    expected, dropped = oracle(rows, filters)
    if not expected:
        filters = FiltersConfig()
        expected, dropped = oracle(rows, filters)
    config = config_of({"event_type_column": "type", "event_weights": WEIGHTS}, filters=filters.model_dump())
    with tempfile.TemporaryDirectory() as folder:
        columns = {
            name: [row[position] for row in rows]
            for position, name in enumerate(("user", "item", "time", "type"))
        }
        pyarrow.csv.write_csv(pa.table(columns), Path(folder) / "log.csv")
        dataset = prepare(config, Path(folder), Path(folder) / "out")
        users, items = (sorted({row[column] for row in expected}) for column in (0, 1))
        assert dataset.users["user_id"].to_pylist() == users
        assert dataset.items["item_id"].to_pylist() == items
        assert dataset.offsets_U1.tolist() == [
            0,
            *np.cumsum([sum(row[0] == user for row in expected) for user in users]).tolist(),
        ]
        assert dataset.item_rows_E.tolist() == [items.index(row[1]) + FIRST_ITEM_ROW for row in expected]
        assert dataset.timestamps_ms_E.tolist() == [1000 * row[2] for row in expected]
        names = dataset.manifest.event_types
        assert [names[code] for code in dataset.event_types_E] == [row[3] for row in expected]
        assert dataset.weights_E.tolist() == [WEIGHTS[row[3]] for row in expected]
        quality = dataset.manifest.quality
        assert +Counter(quality["dropped"]) == +dropped
        assert quality["rows_read"] == len(rows) == quality["events"] + sum(quality["dropped"].values())
        assert quality["longest_history"] == max(Counter(row[0] for row in expected).values())
        assert quality["density"] == len({row[:2] for row in expected}) / (len(users) * len(items))
