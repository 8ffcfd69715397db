"""Filters over items and offers, against a definition that looks at one offer after the other."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.dataset import FeatureColumn
from passerelle.errors import UserError
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue
from serving.catalogue.columns import Columns
from serving.catalogue.offers import read_offers
from serving.schemas.filters import (
    And,
    Contains,
    Equals,
    Filter,
    Not,
    Or,
    Overlaps,
    Present,
    RadiusBy,
    Range,
    Within,
)
from tests.serving.schemas.test_filters import great_circle_km

PLACE = pa.struct([("latitude", pa.float64()), ("longitude", pa.float64())])
ITEM_FEATURES = [FeatureColumn(name="kind", kind="categorical"), FeatureColumn(name="year", kind="numeric")]
PARIS = {"latitude": 48.8566, "longitude": 2.3522}
VERSAILLES = {"latitude": 48.8049, "longitude": 2.1204}
LYON = {"latitude": 45.7640, "longitude": 4.8357}

ITEMS = pa.table(
    {
        "item_id": [10, 11, 12, 13],
        "kind": ["book", "concert", "museum", None],
        "year": pa.array([2000, 2010, None, 2020]),
    }
)
OFFERS: list[dict[str, Any]] = [
    {
        "offer_id": "a",
        "item_id": 11,
        "price": 30.0,
        "place": PARIS,
        "starts": 100,
        "ends": 200,
        "tags": ["duo"],
    },
    {"offer_id": "b", "item_id": 11, "price": 10.0, "place": LYON, "starts": 150, "ends": None, "tags": []},
    {
        "offer_id": "c",
        "item_id": 10,
        "price": 5.0,
        "place": None,
        "starts": None,
        "ends": None,
        "tags": ["digital"],
    },
    {
        "offer_id": "d",
        "item_id": 12,
        "price": None,
        "place": VERSAILLES,
        "starts": None,
        "ends": 120,
        "tags": ["duo", "digital"],
    },
    {"offer_id": "e", "item_id": 99, "price": 1.0, "place": PARIS, "starts": 0, "ends": 1, "tags": []},
]
SCHEMA = pa.schema(
    [
        ("offer_id", pa.string()),
        ("item_id", pa.int64()),
        ("price", pa.float64()),
        ("place", PLACE),
        ("starts", pa.timestamp("ms")),
        ("ends", pa.timestamp("ms")),
        ("tags", pa.list_(pa.string())),
    ]
)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    path = tmp_path_factory.mktemp("offers") / "offers.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(OFFERS, schema=SCHEMA), path)
    offers = read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))
    assert offers.ignored == 1 and len(offers.item_rows) == 4
    return Catalogue(Columns(ITEMS, ITEM_FEATURES, offset=FIRST_ITEM_ROW), offers)


def meets(item: dict[str, Any], offer: dict[str, Any] | None, condition: Any) -> bool:
    """The definition of a tree for one offer of one item, or for an item without offers."""
    if condition.op == "not":
        return not meets(item, offer, condition.condition)
    if condition.op in ("and", "or"):
        return (all if condition.op == "and" else any)(
            meets(item, offer, part) for part in condition.conditions
        )

    def value_of(name: str) -> Any:
        if name.startswith("offer."):
            return None if offer is None else offer[name.removeprefix("offer.")]
        return item[name]

    if condition.op == "overlaps":
        start, end = value_of(condition.start), value_of(condition.end)
        if start is None and end is None:
            return False
        begun = condition.max is None or start is None or start <= condition.max
        return begun and (condition.min is None or end is None or end >= condition.min)
    value = value_of(condition.column)
    if condition.op == "present":
        return value is not None and value != []
    if value is None:
        return False
    if condition.op == "equals":
        return bool(value == condition.value)
    if condition.op == "contains":
        return condition.value in value
    if condition.op == "within":
        radius_km = condition.radius_km
        if condition.radius_by is not None:
            radius_km = condition.radius_by.radii_km.get(value_of(condition.radius_by.column), radius_km)
        return (
            great_circle_km(
                (condition.latitude, condition.longitude), (value["latitude"], value["longitude"])
            )
            <= radius_km
        )
    return (condition.min is None or value >= condition.min) and (
        condition.max is None or value <= condition.max
    )


TIMES = st.none() | st.integers(50, 250)
RADII = st.none() | st.builds(
    RadiusBy,
    column=st.just("kind"),
    radii_km=st.fixed_dictionaries({"concert": st.sampled_from([3.0, 500.0])}),
)
CONDITIONS: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        Equals, op=st.just("equals"), column=st.just("kind"), value=st.sampled_from(["book", "concert"])
    ),
    st.builds(Range, op=st.just("range"), column=st.just("year"), min=st.integers(1999, 2021)),
    st.builds(Range, op=st.just("range"), column=st.just("offer.price"), max=st.integers(0, 40)),
    st.builds(
        Contains,
        op=st.just("contains"),
        column=st.just("offer.tags"),
        value=st.sampled_from(["duo", "digital", "x"]),
    ),
    st.builds(
        Present,
        op=st.just("present"),
        column=st.sampled_from(["offer.price", "offer.place", "offer.tags", "kind"]),
    ),
    st.builds(
        Overlaps,
        op=st.just("overlaps"),
        start=st.just("offer.starts"),
        end=st.just("offer.ends"),
        min=TIMES,
        max=TIMES,
    ),
    st.builds(
        Within,
        op=st.just("within"),
        column=st.just("offer.place"),
        latitude=st.just(48.85),
        longitude=st.just(2.35),
        radius_km=st.sampled_from([1.0, 25.0, 600.0]),
        radius_by=RADII,
    ),
)


def groups(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(And, op=st.just("and"), conditions=several),
        st.builds(Or, op=st.just("or"), conditions=several),
        st.builds(Not, op=st.just("not"), condition=inner),
    )


@settings(max_examples=1000)
@given(st.lists(st.recursive(CONDITIONS, groups, max_leaves=8), max_size=3), st.booleans())
def test_offers_against_the_definition(catalogue: Catalogue, filters: list[Filter], with_offer: bool) -> None:
    eligible = catalogue.eligible(filters, with_offer=with_offer)
    best = catalogue.best_offers(np.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + 4), eligible, [])
    assert eligible.rows_R[:FIRST_ITEM_ROW].tolist() == [False] * FIRST_ITEM_ROW
    for row, item in enumerate(ITEMS.to_pylist()):
        offers: list[Any] = [offer for offer in OFFERS if offer["item_id"] == item["item_id"]]
        passing = [offer for offer in offers if all(meets(item, offer, condition) for condition in filters)]
        alone = not offers and not with_offer and all(meets(item, None, condition) for condition in filters)
        assert eligible.rows_R[FIRST_ITEM_ROW + row] == (bool(passing) or alone), item
        if eligible.listings_G is not None and eligible.rows_R[FIRST_ITEM_ROW + row]:
            chosen = None if best[row] < 0 else catalogue.offer_ids()[int(best[row])].as_py()
            assert chosen == (passing[0]["offer_id"] if passing else None)


def test_the_best_offer_is_the_cheapest_or_the_nearest_of_those_that_pass(catalogue: Catalogue) -> None:
    rows = np.array([3, 2, 5])

    def prices(units: Any) -> Any:
        return catalogue.numbers("offer.price")[units]

    def distances(units: Any) -> Any:
        return catalogue.distances_km("offer.place", (48.85, 2.35), units)

    def best(keys: list[Any], *filters: Filter) -> list[str | None]:
        found = catalogue.best_offers(rows, catalogue.eligible(filters), keys)
        return [None if unit < 0 else catalogue.offer_ids()[int(unit)].as_py() for unit in found]

    assert best([prices]) == ["b", "c", None] and best([distances, prices]) == ["a", "c", None]
    dear = Range(op="range", column="offer.price", min=20)
    assert best([prices], dear) == ["a", None, None]


def test_nearest_items(catalogue: Catalogue) -> None:
    everything = catalogue.eligible([])
    rows, distances_km = catalogue.nearest(
        "offer.place", (48.85, 2.35), 3, everything.rows_R, everything.listings_G
    )
    assert rows.tolist() == [3, 4]
    expected = [
        great_circle_km((48.85, 2.35), (place["latitude"], place["longitude"]))
        for place in (PARIS, VERSAILLES)
    ]
    np.testing.assert_allclose(distances_km, expected, rtol=1e-9)
    cheap = catalogue.eligible([Range(op="range", column="offer.price", max=20)])
    rows, distances_km = catalogue.nearest("offer.place", (48.85, 2.35), 3, cheap.rows_R, cheap.listings_G)
    assert rows.tolist() == [3] and math.isclose(
        distances_km[0], great_circle_km((48.85, 2.35), (45.764, 4.8357))
    )


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            Range(op="range", column="offer.x", max=1),
            "filters.0: column 'x' is not an offer column; known are ends, place, price",
        ),
        (
            Overlaps(op="overlaps", start="year", end="offer.ends"),
            "one of columns 'year' and 'offer.ends' is of offers, the other of items",
        ),
        (
            Overlaps(op="overlaps", start="offer.price", end="offer.ends"),
            "column 'price' is numeric: use equals or in or range",
        ),
    ],
)
def test_what_does_not_fit_is_named(catalogue: Catalogue, condition: Filter, message: str) -> None:
    with pytest.raises(UserError) as error:
        catalogue.eligible([condition])
    assert message in str(error.value)
    with pytest.raises(UserError, match="there are no offers here"):
        Catalogue(catalogue.items).eligible([condition])


def test_columns_without_gaps_and_huge_numbers(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            pa.field("offer_id", pa.int64(), nullable=False),
            pa.field("item_id", pa.int64(), nullable=False),
            pa.field("n", pa.int64(), nullable=False),
        ]
    )
    path = tmp_path / "offers.parquet"
    pyarrow.parquet.write_table(
        pa.table({"offer_id": [1], "item_id": [11], "n": [2**60 + 1]}, schema=schema), path
    )
    offers = read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))
    found = Catalogue(Columns(ITEMS, ITEM_FEATURES, offset=FIRST_ITEM_ROW), offers).eligible(
        [Range(op="range", column="offer.n", min=5)]
    )
    assert np.flatnonzero(found.rows_R).tolist() == [3]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"item_id": [1]}), "column offer_id is missing"),
        (pa.table({"offer_id": [1, 1], "item_id": [10, 11]}), "1 rows repeat an offer_id"),
        (pa.table({"offer_id": [1, None], "item_id": [10, 11]}), "1 rows have no offer_id"),
        (pa.table({"offer_id": [1], "item_id": [10], "x": [b"y"]}), "column 'x' holds binary"),
        (
            pa.table({"offer_id": [1.5], "item_id": [10]}),
            "column offer_id holds double, neither text nor whole numbers",
        ),
        (pa.table({"offer_id": [1], "item_id": ["ten"]}), "items of this bundle have ids of type int64"),
        (pa.table({"offer_id": [1], "item_id": [10], "x": [[[1]]]}), "column 'x' holds list"),
    ],
)
def test_files_of_offers_that_make_no_sense(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "offers.parquet"
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=message):
        read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))
