"""Filters over item columns: trees of typed conditions, which become one boolean mask and never a string.

    [{"op": "contains", "column": "genres", "value": "Drama"},
     {"op": "or", "conditions": [{"op": "range", "column": "year", "min": 1990},
                                 {"op": "not", "condition": ...}]}]

An item whose value is missing meets no condition on that column, and so meets the `not` of each.
`present` tells such items apart.
Where items have offers, conditions may name columns of both: an item passes if one of its offers meets all.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator, model_validator

from serving.schemas.base import RequestModel, Several

MAX_RADII = 1000
Value = Annotated[StrictStr | StrictBool | StrictInt | StrictFloat, Field(union_mode="left_to_right")]
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | StrictFloat


class Condition(RequestModel):
    """Base of all conditions."""

    def children(self) -> "tuple[Filter, ...]":
        """Returns the conditions of a group; none otherwise."""
        return ()

    def columns(self) -> tuple[str, ...]:
        """Returns the names of the columns that this condition itself reads."""
        return ()


class ColumnCondition(Condition):
    """A condition on one column."""

    column: str

    def columns(self) -> tuple[str, ...]:
        """Returns the name of the column."""
        return (self.column,)


class Equals(ColumnCondition):
    """The item's value is this one."""

    op: Literal["equals"]
    value: Value


class In(ColumnCondition):
    """The item's value is one of these."""

    op: Literal["in"]
    values: Several[Value] = Field(min_length=1, max_length=10_000)


class Range(ColumnCondition):
    """The item's number lies between `min` and `max`, both included; one of them may be absent."""

    op: Literal["range"]
    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> "Range":
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Overlaps(Condition):
    """The item's period, from the column `start` to the column `end`, overlaps that from `min` to `max`.

    All bounds are included.
    An item without a start has always existed, one without an end never ends, and one with neither fails.
    """

    op: Literal["overlaps"]
    start: str
    end: str
    min: Number | None = None
    max: Number | None = None

    def columns(self) -> tuple[str, ...]:
        """Returns the names of both columns."""
        return self.start, self.end


class Contains(ColumnCondition):
    """One of the item's values is this one."""

    op: Literal["contains"]
    value: Value


Radius = Annotated[StrictFloat, Field(gt=0, le=20_038)]
"""One type, as a thousand of them take time; it takes whole numbers too."""


class RadiusBy(RequestModel):
    """Other radii for the items that have one of these values."""

    column: str
    radii_km: dict[str, Radius] = Field(min_length=1, max_length=MAX_RADII)

    @field_validator("radii_km", mode="before")
    @classmethod
    def _limit_radii(cls, given: Any) -> Any:
        # checked before the radii themselves are validated
        if isinstance(given, dict) and len(given) > MAX_RADII:
            raise ValueError(f"there are {len(given)} radii, at most {MAX_RADII} are possible")
        return given


class Within(ColumnCondition):
    """The item's place lies within a radius of a point, along the surface of the Earth."""

    op: Literal["within"]
    latitude: Annotated[StrictFloat, Field(ge=-90, le=90)]
    longitude: Annotated[StrictFloat, Field(ge=-180, le=180)]
    radius_km: Radius
    radius_by: RadiusBy | None = None
    """Radii by category: the largest of an item's categories counts, or `radius_km` if none is named."""

    def columns(self) -> tuple[str, ...]:
        """Returns the names of the column of places and of that of categories."""
        return (self.column,) if self.radius_by is None else (self.column, self.radius_by.column)


class Present(ColumnCondition):
    """The item has a value, or at least one of several."""

    op: Literal["present"]


class And(Condition):
    """All conditions hold."""

    op: Literal["and"]
    conditions: "Several[Filter]" = Field(min_length=1, max_length=100)

    def children(self) -> "tuple[Filter, ...]":
        """Returns the conditions of the group."""
        return self.conditions


class Or(Condition):
    """At least one condition holds."""

    op: Literal["or"]
    conditions: "Several[Filter]" = Field(min_length=1, max_length=100)

    def children(self) -> "tuple[Filter, ...]":
        """Returns the conditions of the group."""
        return self.conditions


class Not(Condition):
    """The condition does not hold, which includes items without a value."""

    op: Literal["not"]
    condition: "Filter"

    def children(self) -> "tuple[Filter, ...]":
        """Returns the condition that is negated."""
        return (self.condition,)


Leaf = Equals | In | Range | Contains | Within | Overlaps | Present
Filter = Annotated[Leaf | And | Or | Not, Field(discriminator="op")]
for _group in (And, Or, Not):
    _group.model_rebuild()

MAX_CONDITIONS = 1000
MAX_VALUES = 20_000
MAX_DEPTH = 50


def require_few(given: Any) -> None:
    """Checks the size of filter trees as they came in, before anything else looks at them.

    Anything that is no condition is left to validation.

    Raises:
        ValueError: there are too many conditions, values or radii, or they are nested too deeply.
    """
    waiting, num_conditions, num_values = [(given, 1)], 0, 0
    while waiting:
        conditions, depth = waiting.pop()
        num_conditions += _count(conditions)
        if num_conditions > MAX_CONDITIONS:
            raise ValueError(f"there are more than {MAX_CONDITIONS} conditions")
        for condition in conditions if isinstance(conditions, list | tuple) else ():
            if not isinstance(condition, dict):
                continue
            by = condition.get("radius_by")
            num_values += _count(condition.get("values"))
            num_values += _count(by.get("radii_km")) if isinstance(by, dict) else 0
            waiting.append((condition.get("conditions"), depth + 1))
            waiting.append(([condition["condition"]] if "condition" in condition else (), depth + 1))
        if num_values > MAX_VALUES:
            raise ValueError(f"conditions name more than {MAX_VALUES} values and radii")
        if depth > MAX_DEPTH and _count(conditions):
            raise ValueError(f"conditions are nested more than {MAX_DEPTH} deep")


def _count(values: Any) -> int:
    return len(values) if isinstance(values, list | tuple | dict) else 0


def radii_of(condition: Filter) -> int:
    """Returns the number of radii by category that a condition names."""
    return len(condition.radius_by.radii_km) if isinstance(condition, Within) and condition.radius_by else 0


def columns_of(filters: Sequence[Filter]) -> set[str]:
    """Returns the names of all columns that some trees read."""
    return {name for condition in all_conditions(filters) for name in condition.columns()}


def all_conditions(filters: Sequence[Filter]) -> Iterator[Filter]:
    """Yields every condition of some trees, groups included."""
    waiting = list(filters)
    while waiting:
        condition = waiting.pop()
        yield condition
        waiting += condition.children()
