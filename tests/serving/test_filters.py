"""Filters against a definition that looks at one row after the other."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from passerelle.bundle import Bundle
from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from serving.filters import Contains, Equals, Filter, In, ItemFilters, Range
from tests.items import GENRES

KINDS = st.sampled_from(["film", "book", "unheard of"])
YEARS = st.integers(1948, 2022)

CONDITIONS = st.one_of(
    st.builds(Equals, op=st.just("equals"), column=st.just("kind"), value=KINDS),
    st.builds(Equals, op=st.just("equals"), column=st.just("year"), value=YEARS),
    st.builds(In, op=st.just("in"), column=st.just("kind"), values=st.lists(KINDS, min_size=1).map(tuple)),
    st.builds(In, op=st.just("in"), column=st.just("year"), values=st.lists(YEARS, min_size=1).map(tuple)),
    st.builds(Range, op=st.just("range"), column=st.just("year"), min=YEARS, max=st.none() | YEARS),
    st.builds(Range, op=st.just("range"), column=st.just("year"), max=st.floats(1948, 2022)),
    st.builds(Contains, op=st.just("contains"), column=st.just("genres"), value=st.sampled_from([*GENRES, "Noir"])),
)


def meets(item: dict[str, Any], condition: Any) -> bool:
    """The definition of one condition for one item."""
    value = item[condition.column]
    if value is None:
        return False
    if condition.op == "equals":
        return bool(value == condition.value)
    if condition.op == "in":
        return value in condition.values
    if condition.op == "contains":
        return condition.value in value
    return (condition.min is None or value >= condition.min) and (condition.max is None or value <= condition.max)


@given(st.lists(CONDITIONS, max_size=4))
def test_against_the_definition(bundle: Bundle, conditions: list[Filter]) -> None:
    mask_R = ItemFilters(bundle.items, bundle.manifest.item_features).mask(conditions)
    expected = [all(meets(item, condition) for condition in conditions) for item in bundle.items.to_pylist()]
    assert mask_R.tolist() == [False] * FIRST_ITEM_ROW + expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            Equals(op="equals", column="colour", value="red"),
            "filters.0: column 'colour' is not an item column; known are genres, kind, title, year",
        ),
        (Equals(op="equals", column="genres", value="Drama"), "column 'genres' is multi_categorical: use contains, not equals"),
        (Contains(op="contains", column="year", value=1990), "column 'year' is numeric: use equals or in or range, not contains"),
        (Range(op="range", column="kind", min=1), "column 'kind' is categorical: use equals or in, not range"),
        (Equals(op="equals", column="kind", value=3), "column 'kind' holds text, got 3"),
        (In(op="in", column="year", values=(1990, "1991")), "column 'year' holds numbers, got '1991'"),
        (Equals(op="equals", column="year", value=True), "column 'year' holds numbers, got True"),
    ],
)
def test_what_does_not_fit_is_named(bundle: Bundle, condition: Filter, message: str) -> None:
    with pytest.raises(UserError) as error:
        ItemFilters(bundle.items, bundle.manifest.item_features).mask([condition])
    assert message in str(error.value)


def test_the_second_condition_is_numbered(bundle: Bundle) -> None:
    good, bad = Equals(op="equals", column="kind", value="film"), Equals(op="equals", column="x", value=1)
    with pytest.raises(UserError, match=r"filters\.1: column 'x'"):
        ItemFilters(bundle.items, bundle.manifest.item_features).mask([good, bad])


@pytest.mark.parametrize(
    "values",
    [
        {"op": "range", "column": "year"},
        {"op": "in", "column": "year", "values": []},
        {"op": "near", "column": "year", "value": 1},
        {"op": "equals", "column": "year", "value": float("nan")},
        {"op": "equals", "column": "year", "value": 1, "negate": True},
        {"op": "equals", "column": "year", "value": [1]},
    ],
)
def test_malformed_conditions(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Filter).validate_python(values)


def test_flags_and_dictionaries() -> None:
    items = pa.table({"item_id": [1, 2, 3], "free": [True, False, None], "shop": pa.array(["a", "b", "a"]).dictionary_encode()})
    filters = ItemFilters(items, [FeatureColumn(name="free", kind="categorical"), FeatureColumn(name="shop", kind="categorical")])
    assert np.flatnonzero(filters.mask([Equals(op="equals", column="free", value=False)])).tolist() == [3]
    assert np.flatnonzero(filters.mask([Equals(op="equals", column="shop", value="a")])).tolist() == [2, 4]
    with pytest.raises(UserError, match="column 'free' holds true or false, got 1"):
        filters.mask([Equals(op="equals", column="free", value=1)])


def test_timestamps_are_numbers_and_vectors_and_places_are_for_networks() -> None:
    opens = pa.array([10, None, 30], pa.int64())
    venue = pa.array([{"latitude": 1.0, "longitude": 2.0}, None, None])
    items = pa.table({"opens": opens, "image": pa.array([[1.0], [2.0], None], pa.large_list(pa.float32())), "venue": venue})
    kinds = (
        FeatureColumn(name="opens", kind="timestamp"),
        FeatureColumn(name="image", kind="vector", width=1),
        FeatureColumn(name="venue", kind="place"),
    )
    filters = ItemFilters(items, kinds)
    assert filters.mask([Range(op="range", column="opens", min=20)]).tolist() == [False, False, False, False, True]
    assert filters.mask([In(op="in", column="opens", values=(10, 30))]).tolist() == [False, False, True, False, True]
    for name, kind in (("image", "vector"), ("venue", "place")):
        with pytest.raises(UserError, match=rf"filters\.0: column '{name}' is a {kind}, which cannot be filtered by"):
            filters.mask([Equals(op="equals", column=name, value=1)])
