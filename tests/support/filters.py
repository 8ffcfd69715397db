"""The definition of filters for one record, and strategies that draw filters."""

import math
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from serving.catalogue.columns import EARTH_RADIUS_KM
from serving.schemas.filters import And, Contains, Equals, Filter, In, Not, Or, Present, Range
from tests.support.items import GENRES

KINDS = st.sampled_from(["film", "book", "unheard of"])
YEARS = st.integers(1948, 2022)
CONDITIONS: st.SearchStrategy[Any] = st.one_of(
    st.builds(Equals, op=st.just("equals"), column=st.just("kind"), value=KINDS),
    st.builds(Equals, op=st.just("equals"), column=st.just("year"), value=YEARS),
    st.builds(In, op=st.just("in"), column=st.just("kind"), values=st.lists(KINDS, min_size=1).map(tuple)),
    st.builds(In, op=st.just("in"), column=st.just("year"), values=st.lists(YEARS, min_size=1).map(tuple)),
    st.builds(Range, op=st.just("range"), column=st.just("year"), min=YEARS, max=st.none() | YEARS),
    st.builds(Range, op=st.just("range"), column=st.just("year"), max=st.floats(1948, 2022)),
    st.builds(
        Contains, op=st.just("contains"), column=st.just("genres"), value=st.sampled_from([*GENRES, "Noir"])
    ),
    st.builds(Present, op=st.just("present"), column=st.sampled_from(["kind", "year", "genres"])),
)
"""Conditions on the items of the test bundle."""


def groups(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draws groups of conditions."""
    several = st.lists(inner, min_size=1, max_size=4).map(tuple)
    return st.one_of(
        st.builds(And, op=st.just("and"), conditions=several),
        st.builds(Or, op=st.just("or"), conditions=several),
        st.builds(Not, op=st.just("not"), condition=inner),
    )


TREES: st.SearchStrategy[Filter] = st.recursive(CONDITIONS, groups, max_leaves=12)


def meets(record: Mapping[str, Any], condition: Any) -> bool:
    """Returns whether one record, a value for each column, meets a tree of conditions."""
    match condition.op:
        case "not":
            return not meets(record, condition.condition)
        case "and":
            return all(meets(record, part) for part in condition.conditions)
        case "or":
            return any(meets(record, part) for part in condition.conditions)
        case "overlaps":
            return _overlaps(record[condition.start], record[condition.end], condition)
    value = record[condition.column]
    if condition.op == "present":
        return value is not None and value != []
    if value is None:
        return False
    match condition.op:
        case "equals":
            return bool(value == condition.value)
        case "in":
            return value in condition.values
        case "contains":
            return condition.value in value
        case "within":
            return _is_within(record, value, condition)
    return (condition.min is None or value >= condition.min) and (
        condition.max is None or value <= condition.max
    )


def _overlaps(start: int | None, end: int | None, condition: Any) -> bool:
    if start is None and end is None:
        return False
    has_begun = condition.max is None or start is None or start <= condition.max
    return has_begun and (condition.min is None or end is None or end >= condition.min)


def _is_within(record: Mapping[str, Any], place: Mapping[str, float], condition: Any) -> bool:
    radius_km = condition.radius_km
    if condition.radius_by is not None:
        radius_km = condition.radius_by.radii_km.get(record[condition.radius_by.column], radius_km)
    centre = condition.latitude, condition.longitude
    return great_circle_km(centre, (place["latitude"], place["longitude"])) <= radius_km


def great_circle_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Returns the distance of two points in degrees, by the haversine formula."""
    (north, east), (to_north, to_east) = (tuple(map(math.radians, point)) for point in (one, other))
    half = (
        math.sin((to_north - north) / 2) ** 2
        + math.cos(north) * math.cos(to_north) * math.sin((to_east - east) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, half)))
