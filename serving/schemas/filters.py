"""Filters over item columns: trees of typed conditions, compiled to one boolean mask. Never to a string.

    [{"op": "contains", "column": "genres", "value": "Drama"},
     {"op": "or", "conditions": [{"op": "range", "column": "year", "min": 1990}, {"op": "not", "condition": ...}]}]

An item whose value is missing meets no condition on that column, and so meets the `not` of each: `present` tells them apart.
Where items have offers, conditions may name columns of both: an item passes when one of its offers meets all of them.

Shape legend: R item rows (special rows included), U units (every offer, and every item that has none).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from serving.schemas.base import RequestModel, Several

MAX_RADII = 1000
Value = StrictBool | StrictInt | StrictFloat | StrictStr
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | StrictFloat


class Equals(RequestModel):
    """The item's value is this one."""

    op: Literal["equals"]
    column: str
    value: Value


class In(RequestModel):
    """The item's value is one of these."""

    op: Literal["in"]
    column: str
    values: Several[Value] = Field(min_length=1, max_length=10_000)


class Range(RequestModel):
    """The item's number lies between `min` and `max`, both included; one of them may be absent."""

    op: Literal["range"]
    column: str
    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Range":
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Overlaps(RequestModel):
    """The item's time, from the column `start` to the column `end`, has a moment in common with that from `min` to `max`, all included.

    An item without a start has always been, one without an end does not end, and one with neither meets no such condition.
    """

    op: Literal["overlaps"]
    start: str
    end: str
    min: Number | None = None
    max: Number | None = None


class Contains(RequestModel):
    """One of the item's several values is this one."""

    op: Literal["contains"]
    column: str
    value: Value


Radius = Annotated[Number, Field(gt=0, le=20_038)]


class RadiusBy(RequestModel):
    """Other radii for the items whose column has one of these values."""

    column: str
    radii_km: dict[str, Radius] = Field(min_length=1)

    @field_validator("radii_km", mode="before")
    @classmethod
    def _are_few(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MAX_RADII:  # before each of them is looked at
            raise ValueError(f"there are {len(given)} radii, at most {MAX_RADII} are possible")
        return given


class Within(RequestModel):
    """The item's place lies within so many kilometres of a point, along the surface of the Earth."""

    op: Literal["within"]
    column: str
    latitude: Annotated[Number, Field(ge=-90, le=90)]
    longitude: Annotated[Number, Field(ge=-180, le=180)]
    radius_km: Radius
    radius_by: RadiusBy | None = None
    """One value, or one of several: the largest of their radii counts. `radius_km` for what it does not name."""


class Present(RequestModel):
    """The item has a value (of several values, one at least)."""

    op: Literal["present"]
    column: str


class And(RequestModel):
    """All of these hold."""

    op: Literal["and"]
    conditions: "Several[Filter]" = Field(min_length=1, max_length=100)


class Or(RequestModel):
    """One of these holds."""

    op: Literal["or"]
    conditions: "Several[Filter]" = Field(min_length=1, max_length=100)


class Not(RequestModel):
    """This does not hold: also of an item without a value."""

    op: Literal["not"]
    condition: "Filter"


Leaf = Equals | In | Range | Contains | Within | Overlaps | Present
Filter = Annotated[Leaf | And | Or | Not, Field(discriminator="op")]
for _group in (And, Or, Not):
    _group.model_rebuild()

MAX_CONDITIONS = 1000
MAX_VALUES = 20_000
DEEPEST = 50


def count_conditions(filters: Sequence[Filter]) -> int:
    """All conditions of some trees, groups among them.

    Raises:
        ValueError: they are nested too deeply.
    """
    waiting, count = [(condition, 1) for condition in filters], 0
    while waiting:
        condition, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:
            raise ValueError(f"filters are nested more than {DEEPEST} deep")
        inner = (
            condition.conditions
            if isinstance(condition, And | Or)
            else [condition.condition]
            if isinstance(condition, Not)
            else []
        )
        waiting += [(part, depth + 1) for part in inner]
    return count


def count_values(filters: Sequence[Filter]) -> int:
    """All values that the `in` conditions of some trees name."""
    return sum(len(condition.values) for condition in leaves(filters) if isinstance(condition, In))


def columns_of(filters: Sequence[Filter]) -> set[str]:
    """Names of all columns that some trees read."""
    names: set[str] = set()
    for condition in leaves(filters):
        if isinstance(condition, Overlaps):
            names |= {condition.start, condition.end}
        else:
            names.add(condition.column)
        if isinstance(condition, Within) and condition.radius_by is not None:
            names.add(condition.radius_by.column)
    return names


def leaves(filters: Sequence[Filter]) -> list[Leaf]:
    """The conditions of some trees that are no groups."""
    waiting, found = list(filters), []
    while waiting:
        condition = waiting.pop()
        if isinstance(condition, And | Or):
            waiting += condition.conditions
        elif isinstance(condition, Not):
            waiting.append(condition.condition)
        else:
            found.append(condition)
    return found
