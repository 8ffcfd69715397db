"""The work of filters: what is too much is refused, and nothing goes on after the deadline."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue
from serving.catalogue.columns import Columns
from serving.catalogue.filter_budget import (
    CONDITION_WORK,
    LOOKUP_WORK,
    PLACE_WORK,
    FilterBudget,
    expected_work,
)
from serving.deadline import Deadline, DeadlineError
from serving.schemas.filters import And, Contains, Equals, Filter, In, Overlaps, Present, Range, Within

NUM_ITEMS = 1_000
FEATURES = [
    FeatureColumn(name="tags", kind="multi_categorical"),
    FeatureColumn(name="year", kind="numeric"),
    FeatureColumn(name="opens", kind="timestamp"),
    FeatureColumn(name="venue", kind="place"),
]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Every item has 1 to 3 tags; the venues lie on a meridian, from the south pole to the north pole."""
    rows = np.arange(NUM_ITEMS)
    latitudes = np.linspace(-90, 90, NUM_ITEMS)
    items = pa.table(
        {
            "tags": [[f"t{row % 7}", "a", "b"][: 1 + row % 3] for row in rows.tolist()],
            "year": rows,
            "opens": rows,
            "venue": [{"latitude": latitude, "longitude": 0.0} for latitude in latitudes.tolist()],
        }
    )
    return Catalogue(Columns(items, FEATURES, offset=FIRST_ITEM_ROW))


def within(radius_km: float, radii_km: dict[str, float] | None = None) -> Within:
    by = None if radii_km is None else {"column": "tags", "radii_km": radii_km}
    return Within.model_validate(
        {
            "op": "within",
            "column": "venue",
            "latitude": 0,
            "longitude": 0,
            "radius_km": radius_km,
            "radius_by": by,
        }
    )


CONDITIONS: list[Any] = [
    Equals(op="equals", column="year", value=3),
    In(op="in", column="year", values=tuple(range(100))),
    Range(op="range", column="year", min=3),
    Overlaps(op="overlaps", start="opens", end="opens", min=3),
    Contains(op="contains", column="tags", value="a"),
    Present(op="present", column="venue"),
    within(100),
    within(100, {"a": 50.0, "b": 200.0}),
    And(op="and", conditions=(Present(op="present", column="year"),)),
]


class Meter(FilterBudget):
    """A budget that knows what was spent."""

    def __init__(self) -> None:
        super().__init__()
        self.spent = 0.0

    def spend(self, work: float, path: str) -> None:
        super().spend(work, path)
        self.spent += work


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.op)
def test_a_budget_suffices_for_exactly_its_work(catalogue: Catalogue, condition: Filter) -> None:
    meter = Meter()
    mask_R = catalogue.eligible([condition], budget=meter).rows_R
    assert meter.spent >= CONDITION_WORK + catalogue.items.num_rows
    enough = catalogue.eligible([condition], budget=FilterBudget(meter.spent)).rows_R
    assert enough.tolist() == mask_R.tolist()
    with pytest.raises(UserError, match=r"filters\.0.*: up to here the filters take more than"):
        catalogue.eligible([condition], budget=FilterBudget(meter.spent - 1))
    without_limit = catalogue.eligible([], [condition], budget=FilterBudget(0)).rows_R
    assert without_limit.tolist() == mask_R.tolist(), "conditions of the configuration are not limited"


def test_work_grows_with_places_values_and_radii(catalogue: Catalogue) -> None:
    def work(condition: Filter) -> float:
        meter = Meter()
        catalogue.eligible([condition], budget=meter)
        return meter.spent

    assert work(within(20_000)) - work(within(10)) >= 0.9 * PLACE_WORK * NUM_ITEMS
    several, single = (work(Present(op="present", column=column)) for column in ("tags", "venue"))
    assert several > single > work(Present(op="present", column="year"))
    grouped = And(op="and", conditions=(Present(op="present", column="year"),) * 2)
    assert work(grouped) - 2 * work(Present(op="present", column="year")) > CONDITION_WORK
    many = {f"t{number}": 1.0 for number in range(1000)}
    assert work(within(1, many)) - work(within(1)) >= 1000 * LOOKUP_WORK
    few, more = (In(op="in", column="year", values=tuple(range(count))) for count in (10, 510))
    assert work(more) - work(few) >= 500 * LOOKUP_WORK


def test_a_condition_after_the_deadline_is_not_evaluated(catalogue: Catalogue) -> None:
    class Passing(Deadline):
        """Passes after some checks, whatever the time is."""

        def __init__(self, checks: int) -> None:
            super().__init__(1e6)
            self.checks = checks

        def check(self) -> None:
            self.checks -= 1
            if self.checks < 0:
                raise DeadlineError("over")

    deadline = Passing(50)
    with pytest.raises(DeadlineError):
        catalogue.eligible([Present(op="present", column="year")] * 100, budget=FilterBudget(1e12, deadline))
    with pytest.raises(DeadlineError):
        catalogue.eligible([], [Present(op="present", column="year")], budget=FilterBudget(1e12, deadline))


def test_a_deadline_that_has_passed_ends_the_work(catalogue: Catalogue) -> None:
    with pytest.raises(DeadlineError):
        catalogue.eligible([CONDITIONS[0]], budget=FilterBudget(deadline=Deadline(0)))
    catalogue.eligible([CONDITIONS[0]], budget=FilterBudget(deadline=Deadline(1e6)))


def test_the_largest_radius_of_an_items_categories_counts(catalogue: Catalogue) -> None:
    tags = catalogue.items
    angles_R = tags.angles(7.0, within(7, {"b": 30, "a": 20.0, "t1": 40, "none": 90}).radius_by, "x", Meter())  # type: ignore[arg-type]
    radii = {"b": 30.0, "a": 20.0, "t1": 40.0}
    for row in range(NUM_ITEMS):
        own = [f"t{row % 7}", "a", "b"][: 1 + row % 3]
        expected = max((radii[tag] for tag in own if tag in radii), default=7.0)
        assert angles_R[FIRST_ITEM_ROW + row] * 6371.0088 == pytest.approx(expected)


def test_expected_work_counts_conditions_values_and_radii() -> None:
    nested = And(op="and", conditions=(Range(op="range", column="year", min=1), within(5, {"a": 1.0})))
    assert expected_work([], 1_000) == 0
    assert expected_work([nested], 1_000) == 3 * CONDITION_WORK + 12 * 1_000 + LOOKUP_WORK
    assert (
        expected_work([In(op="in", column="x", values=(1, 2))], 10) == CONDITION_WORK + 10 + 2 * LOOKUP_WORK
    )
