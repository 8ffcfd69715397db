"""Declared features to codes and numbers: against one row at a time, and for what training never saw."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.calendar_time import DAY_MS
from passerelle.dataset import FeatureColumn
from passerelle.encoding import MAX_NUMBER, MAX_SLOTS, FeatureEncoding, fit_encoding
from passerelle.errors import UserError

FEATURES = (
    FeatureColumn(name="title", kind="text"),
    FeatureColumn(name="brand", kind="categorical"),
    FeatureColumn(name="genres", kind="multi_categorical"),
    FeatureColumn(name="price", kind="numeric", scaling="log"),
    FeatureColumn(name="year", kind="numeric", scaling="standard"),
    FeatureColumn(name="image", kind="vector", width=2),
    FeatureColumn(name="opens", kind="timestamp"),
    FeatureColumn(name="venue", kind="place"),
)
TYPES = {
    "title": pa.string(),
    "brand": pa.string(),
    "genres": pa.list_(pa.string()),
    "price": pa.float64(),
    "year": pa.float64(),
    "image": pa.large_list(pa.float32()),
    "opens": pa.int64(),
    "venue": pa.struct([("latitude", pa.float64()), ("longitude", pa.float64())]),
}

some_number = st.floats(-1e6, 1e6, width=32)
some_text = st.sampled_from(["a", "b", "c", "d"])
some_row = st.fixed_dictionaries(
    {
        "title": st.none() | some_text,
        "brand": st.none() | some_text,
        "genres": st.none() | st.lists(some_text, max_size=4),
        "price": st.none() | some_number | st.just(math.nan),
        "year": st.none() | some_number,
        "image": st.none() | st.lists(some_number, min_size=2, max_size=2),
        "opens": st.none() | st.integers(-(10**13), 10**13),
        "venue": st.none()
        | st.fixed_dictionaries({"latitude": st.floats(-90, 90), "longitude": st.floats(-180, 180)}),
    }
)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()})


def slow_row(encoding: FeatureEncoding, row: dict[str, Any]) -> tuple[list[int], list[float], int]:
    """One row, value after value: codes, numbers, unknown values."""
    codes: list[int] = []
    numbers, unknown, first_code = [1.0], 0, 1
    for column in encoding.columns:
        value = row[column.name]
        if column.kind in ("categorical", "multi_categorical"):
            values = [] if value is None else value if column.kind == "multi_categorical" else [value]
            own = [
                first_code + (column.values.index(each) + 1 if each in column.values else 0)
                for each in values
            ]
            unknown += sum(each not in column.values for each in values)
            codes += (own + [0] * column.slots)[: column.slots]
            first_code += len(column.values) + 1
            continue
        parts: list[float] | None = None
        if value is None:
            pass
        elif column.kind == "vector":
            parts = list(value)
        elif column.kind == "place":
            north, east = math.radians(value["latitude"]), math.radians(value["longitude"])
            parts = [math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)]
        elif not math.isnan(value):
            plain = value / DAY_MS if column.kind == "timestamp" else value
            parts = [math.copysign(math.log1p(abs(plain)), plain) if column.scaling == "log" else plain]
        width = {"vector": 2, "place": 3}.get(column.kind, 1)
        scaled = [(part - column.center) / column.scale for part in parts or [column.center] * width]
        numbers += [max(-MAX_NUMBER, min(MAX_NUMBER, number)) for number in scaled] + [float(parts is None)]
    return codes, numbers, unknown


@settings(max_examples=60, deadline=None)
@given(
    seen=st.lists(some_row, min_size=1, max_size=8),
    later=st.lists(some_row, max_size=5),
    min_count=st.integers(1, 3),
)
def test_rows_are_encoded_as_one_at_a_time(
    seen: list[dict[str, Any]], later: list[dict[str, Any]], min_count: int
) -> None:
    encoding = fit_encoding(table_of(seen), FEATURES, min_count)
    rows = seen + later
    encoded = encoding.encode(table_of(rows))
    assert encoded.codes_NS.shape == (len(rows), encoding.num_slots)
    assert encoded.numbers_NF.shape == (len(rows), encoding.num_numbers)
    expected = [slow_row(encoding, row) for row in rows]
    assert encoded.codes_NS.tolist() == [codes for codes, _, _ in expected]
    np.testing.assert_allclose(
        encoded.numbers_NF, [numbers for _, numbers, _ in expected], rtol=1e-4, atol=1e-4
    )
    assert sum(encoded.unknown.values()) == sum(unknown for _, _, unknown in expected)
    assert encoded.codes_NS.max(initial=0) < encoding.num_codes
    assert np.isfinite(encoded.numbers_NF).all()


def test_by_hand() -> None:
    table = pa.table(
        {
            "brand": ["b", "a", "b", "c"],
            "genres": [["x"], ["y", "x"], None, []],
            "price": [1.0, 3.0, None, float("nan")],
        }
    )
    features = (FEATURES[1], FEATURES[2], FeatureColumn(name="price", kind="numeric"))
    encoding = fit_encoding(table, features, 1)
    assert [column.values for column in encoding.columns] == [("b", "a", "c"), ("x", "y"), ()]
    assert (encoding.num_codes, encoding.num_slots, encoding.num_numbers) == (1 + 4 + 3, 3, 3)
    assert encoding.slots() == {"brand": slice(0, 1), "genres": slice(1, 3)}
    encoded = encoding.encode(table)
    assert encoded.codes_NS.tolist() == [[2, 6, 0], [3, 7, 6], [2, 0, 0], [4, 0, 0]]
    assert encoded.numbers_NF.tolist() == [[1, -1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]]
    assert encoded.unknown == {}
    new = pa.table({"price": [5], "genres": [["z", "x", "y"]], "brand": ["new"], "else": [0]})
    encoded = encoding.encode(new)
    assert encoded.codes_NS.tolist() == [[1, 5, 6]]
    assert encoded.numbers_NF.tolist() == [[1, 3, 0]]
    assert encoded.unknown == {"brand": 1, "genres": 1}


def test_rare_values_are_encoded_as_unknown() -> None:
    encoding = fit_encoding(pa.table({"brand": ["a", "a", "b"]}), FEATURES[1:2], min_count=2)
    assert encoding.columns[0].values == ("a",)
    encoded = encoding.encode(pa.table({"brand": ["b", "a", "never"]}))
    assert encoded.codes_NS[:, 0].tolist() == [1, 2, 1]
    assert encoded.unknown == {"brand": 2}


def test_without_any_column_there_is_one_empty_slot_and_one_number() -> None:
    encoding = fit_encoding(pa.table({"title": ["t"]}), FEATURES[:1], 1)
    encoded = encoding.encode(pa.table({"title": ["t", "u"]}))
    assert (encoded.codes_NS.tolist(), encoded.numbers_NF.tolist()) == ([[0], [0]], [[1], [1]])


def test_constant_and_unknown_columns_stay_finite() -> None:
    table = pa.table(
        {"price": [2.0, 2.0], "year": pa.array([None, None], pa.float64()), "image": [[0.0, 0.0], [0.0, 0.0]]}
    )
    encoding = fit_encoding(table, (FEATURES[3], FEATURES[4], FEATURES[5]), 1)
    assert np.isfinite(encoding.encode(table).numbers_NF).all()


def test_values_beyond_the_slots_do_not_count() -> None:
    many = [str(value) for value in range(MAX_SLOTS + 3)]
    encoding = fit_encoding(pa.table({"genres": [many]}), FEATURES[2:3], 1)
    assert encoding.num_slots == MAX_SLOTS
    assert (encoding.encode(pa.table({"genres": [many]})).codes_NS > 0).all()


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        (
            "image",
            [[1.0, 2.0], None, [1.0, 2.0, 3.0]],
            r"column 'image': 1 vectors are not 2 numbers long; the first, of row 3, has 3",
        ),
        ("image", [1.0], r"column 'image' holds double, not vectors of 2 numbers"),
        ("price", [["a"]], r"column 'price' holds list<.*>, not numbers"),
        ("other", [1.0], r"column '.*' is missing; there are: other"),
    ],
)
def test_columns_that_cannot_be_encoded_are_named(column: str, values: list[Any], said: str) -> None:
    wanted = [feature for feature in FEATURES if feature.name == column] or [FEATURES[4]]
    encoding = fit_encoding(table_of([dict.fromkeys(TYPES)]), wanted, 1)
    with pytest.raises(UserError, match=said):
        encoding.encode(pa.table({column: values}))


def test_an_encoding_survives_json() -> None:
    rows = [{**dict.fromkeys(TYPES), "brand": "é", "price": 3.5, "image": [1.0, -1.0]}]
    encoding = fit_encoding(table_of(rows), FEATURES, 1)
    again = FeatureEncoding.model_validate_json(encoding.model_dump_json())
    assert again == encoding
    assert np.array_equal(again.encode(table_of(rows)).numbers_NF, encoding.encode(table_of(rows)).numbers_NF)


def test_a_dictionary_is_encoded_as_its_values() -> None:
    """Of events in chunks, whose dictionaries differ; of some rows of them, too."""
    chunks = [pa.array(["a", None, "b", "b"]), pa.array(["c", "b", None])]
    plain = pa.table({"place": pa.chunked_array(chunks)})
    encoded = pa.table({"place": pa.chunked_array([chunk.dictionary_encode() for chunk in chunks])})
    for min_count in (1, 2):
        one, other = (
            fit_encoding(table, [FeatureColumn(name="place", kind="categorical")], min_count)
            for table in (plain, encoded)
        )
        assert one == other
        for rows in (slice(0, 7), slice(2, 3)):
            found, expected = (one.encode(table.slice(rows.start, rows.stop)) for table in (encoded, plain))
            assert np.array_equal(found.codes_NS, expected.codes_NS) and found.unknown == expected.unknown
