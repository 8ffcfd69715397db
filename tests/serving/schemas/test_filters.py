"""Filters against a definition that checks one row after the other."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from passerelle.bundle import Bundle
from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue
from serving.catalogue.columns import Columns
from serving.schemas.filters import And, Contains, Equals, Filter, In, Not, Or, Present, Range, Within
from serving.schemas.recommend import RecommendRequest
from tests.support.filters import TREES, great_circle_km, meets


class ItemFilters:
    """The masks of filters over a table of items."""

    def __init__(self, items: pa.Table, features: Sequence[FeatureColumn]) -> None:
        self._catalogue = Catalogue(Columns(items, features, offset=FIRST_ITEM_ROW))

    def mask(self, filters: Sequence[Filter]) -> Any:
        return self._catalogue.eligible(filters).rows_R


@settings(max_examples=300, deadline=None)
@given(st.lists(TREES, max_size=3))
def test_masks_match_the_definition(bundle: Bundle, conditions: list[Filter]) -> None:
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
        (
            Equals(op="equals", column="genres", value="Drama"),
            "column 'genres' is multi_categorical: use contains or present, not equals",
        ),
        (
            Contains(op="contains", column="year", value=1990),
            "is numeric: use equals or in or range or present, not contains",
        ),
        (
            Range(op="range", column="kind", min=1),
            "column 'kind' is categorical: use equals or in or present, not range",
        ),
        (Equals(op="equals", column="kind", value=3), "column 'kind' holds text, got 3"),
        (In(op="in", column="year", values=(1990, "1991")), "column 'year' holds numbers, got '1991'"),
        (Equals(op="equals", column="year", value=True), "column 'year' holds numbers, got True"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(bundle: Bundle, condition: Filter, message: str) -> None:
    with pytest.raises(UserError) as error:
        ItemFilters(bundle.items, bundle.manifest.item_features).mask([condition])
    assert message in str(error.value)


def test_errors_name_the_position_of_the_condition(bundle: Bundle) -> None:
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
        {"op": "range", "column": "year", "min": 10**400},
    ],
)
def test_malformed_conditions_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Filter).validate_python(values)


def test_boolean_and_dictionary_columns() -> None:
    items = pa.table(
        {
            "item_id": [1, 2, 3],
            "free": [True, False, None],
            "shop": pa.array(["a", "b", "a"]).dictionary_encode(),
        }
    )
    filters = ItemFilters(
        items,
        [FeatureColumn(name="free", kind="categorical"), FeatureColumn(name="shop", kind="categorical")],
    )
    assert np.flatnonzero(filters.mask([Equals(op="equals", column="free", value=False)])).tolist() == [3]
    assert np.flatnonzero(filters.mask([Equals(op="equals", column="shop", value="a")])).tolist() == [2, 4]
    with pytest.raises(UserError, match="column 'free' holds true or false, got 1"):
        filters.mask([Equals(op="equals", column="free", value=1)])


def test_timestamps_compare_as_numbers_and_vectors_are_refused() -> None:
    opens = pa.array([10, None, 30], pa.int64())
    venue = pa.array([{"latitude": 1.0, "longitude": 2.0}, None, None])
    items = pa.table(
        {"opens": opens, "image": pa.array([[1.0], [2.0], None], pa.large_list(pa.float32())), "venue": venue}
    )
    kinds = (
        FeatureColumn(name="opens", kind="timestamp"),
        FeatureColumn(name="image", kind="vector", width=1),
        FeatureColumn(name="venue", kind="place"),
    )
    filters = ItemFilters(items, kinds)
    assert filters.mask([Range(op="range", column="opens", min=20)]).tolist() == [
        False,
        False,
        False,
        False,
        True,
    ]
    assert filters.mask([In(op="in", column="opens", values=(10, 30))]).tolist() == [
        False,
        False,
        True,
        False,
        True,
    ]
    with pytest.raises(
        UserError, match=r"filters\.0: column 'image' is a vector, which cannot be filtered by"
    ):
        filters.mask([Equals(op="equals", column="image", value=1)])
    with pytest.raises(
        UserError, match=r"filters\.0: column 'venue' is place: use within or present, not equals"
    ):
        filters.mask([Equals(op="equals", column="venue", value=1)])
    assert filters.mask([Present(op="present", column="venue")]).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]


PLACES = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@settings(max_examples=200, deadline=None)
@given(
    places=st.lists(st.none() | PLACES, min_size=1, max_size=6),
    centre=PLACES,
    radius_km=st.floats(0.01, 20_000),
)
def test_within_matches_the_great_circle_distance(
    places: list[tuple[float, float] | None], centre: tuple[float, float], radius_km: float
) -> None:
    values = [None if place is None else {"latitude": place[0], "longitude": place[1]} for place in places]
    kind = pa.struct([("latitude", pa.float64()), ("longitude", pa.float64())])
    filters = ItemFilters(
        pa.table({"venue": pa.array(values, kind)}), [FeatureColumn(name="venue", kind="place")]
    )
    condition = Within(
        op="within", column="venue", latitude=centre[0], longitude=centre[1], radius_km=radius_km
    )
    found = filters.mask([condition]).tolist()
    assert found[:FIRST_ITEM_ROW] == [False] * FIRST_ITEM_ROW
    for place, is_within in zip(places, found[FIRST_ITEM_ROW:], strict=True):
        distance_km = math.inf if place is None else great_circle_km(centre, place)
        if abs(distance_km - radius_km) > 1e-6 * max(1.0, radius_km):  # else rounding may decide
            assert is_within == (distance_km <= radius_km)


def test_within_a_known_distance() -> None:
    venue = pa.array(
        [{"latitude": 48.8566, "longitude": 2.3522}, {"latitude": 45.7640, "longitude": 4.8357}, None]
    )
    filters = ItemFilters(pa.table({"venue": venue}), [FeatureColumn(name="venue", kind="place")])
    for radius_km, expected in ((1, [3]), (391, [3]), (393, [2, 3])):
        condition = Within(
            op="within", column="venue", latitude=45.764, longitude=4.8357, radius_km=radius_km
        )
        assert np.flatnonzero(filters.mask([condition])).tolist() == expected


def test_errors_name_the_path_of_a_nested_condition(bundle: Bundle) -> None:
    bad = Equals(op="equals", column="x", value=1)
    tree = Or(
        op="or",
        conditions=(
            Present(op="present", column="kind"),
            Not(op="not", condition=And(op="and", conditions=(bad,))),
        ),
    )
    with pytest.raises(
        UserError,
        match=r"filters\.0\.conditions\.1\.condition\.conditions\.0: column 'x' is not an item column",
    ):
        ItemFilters(bundle.items, bundle.manifest.item_features).mask([tree])


def test_too_many_or_too_deep_conditions_are_refused() -> None:
    tree: dict[str, Any] = {"op": "present", "column": "kind"}
    wide = {"op": "or", "conditions": [{"op": "and", "conditions": [tree] * 100}] * 10}
    RecommendRequest.model_validate({"filters": [{"op": "or", "conditions": [tree] * 99}] * 10})
    with pytest.raises(ValidationError, match="there are more than 1000 conditions"):
        RecommendRequest.model_validate({"filters": [wide]})
    for _ in range(49):
        tree = {"op": "not", "condition": tree}
    RecommendRequest.model_validate({"filters": [tree]})
    with pytest.raises(ValidationError, match="conditions are nested more than 50 deep"):
        RecommendRequest.model_validate({"filters": [{"op": "not", "condition": tree}]})
    for _ in range(3000):
        tree = {"op": "not", "condition": tree}
    with pytest.raises(ValidationError):
        RecommendRequest.model_validate({"filters": [tree]})


def within(radii: int) -> dict[str, Any]:
    by = {"column": "kind", "radii_km": {str(radius): radius for radius in range(1, radii + 1)}}
    return {
        "op": "within",
        "column": "venue",
        "latitude": 0,
        "longitude": 0,
        "radius_km": 1,
        "radius_by": by,
    }


@pytest.mark.parametrize(
    "filters",
    [
        [within(1000)] * 21,
        [{"op": "or", "conditions": [{"op": "not", "condition": within(1000)}] * 21}],
        [{"op": "in", "column": "kind", "values": ["a"] * 10_000}] * 3,
        [within(1000), {"op": "in", "column": "kind", "values": ["a"] * 10_000}] * 2,
    ],
)
def test_values_and_radii_of_all_conditions_are_limited_together(filters: list[Any]) -> None:
    with pytest.raises(ValidationError, match="conditions name more than 20000 values and radii"):
        RecommendRequest.model_validate({"filters": filters})
    RecommendRequest.model_validate({"filters": filters[:1] if len(filters) > 1 else []})


@pytest.mark.parametrize("filters", [None, 3, "and", [3], {"op": "and"}, [[[[]]]], [{"conditions": 5}]])
def test_what_is_no_filter_is_refused_by_validation(filters: Any) -> None:
    with pytest.raises(ValidationError):
        RecommendRequest.model_validate({"filters": filters})
