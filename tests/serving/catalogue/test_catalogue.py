"""Filters over items and offers, against a definition that checks one offer after the other."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.errors import UserError
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue
from serving.catalogue.columns import Columns
from serving.catalogue.offers import read_offers
from serving.schemas.filters import (
    Contains,
    Equals,
    Filter,
    Overlaps,
    Present,
    RadiusBy,
    Range,
    Within,
)
from tests.support.filters import great_circle_km, groups, meets
from tests.support.offer_catalogue import ITEM_FEATURES, ITEMS, OFFERS, PARIS, SCHEMA, VERSAILLES, record_of


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    path = tmp_path_factory.mktemp("offers") / "offers.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(OFFERS, schema=SCHEMA), path)
    offers = read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))
    assert offers.ignored == 1 and len(offers.item_rows) == 4
    return Catalogue(Columns(ITEMS, ITEM_FEATURES, offset=FIRST_ITEM_ROW), offers)


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


@settings(max_examples=1000)
@given(st.lists(st.recursive(CONDITIONS, groups, max_leaves=8), max_size=3), st.booleans())
def test_filters_over_offers_match_the_definition(
    catalogue: Catalogue, filters: list[Filter], with_offer: bool
) -> None:
    eligible = catalogue.eligible(filters, with_offer=with_offer)
    best = catalogue.best_offers(np.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + 4), eligible, [])
    assert eligible.rows_R[:FIRST_ITEM_ROW].tolist() == [False] * FIRST_ITEM_ROW
    for row, item in enumerate(ITEMS.to_pylist()):
        offers: list[Any] = [offer for offer in OFFERS if offer["item_id"] == item["item_id"]]
        passing = [
            offer
            for offer in offers
            if all(meets(record_of(item, offer), condition) for condition in filters)
        ]
        alone = (
            not offers
            and not with_offer
            and all(meets(record_of(item, None), condition) for condition in filters)
        )
        assert eligible.rows_R[FIRST_ITEM_ROW + row] == (bool(passing) or alone), item
        if eligible.listings_G is not None and eligible.rows_R[FIRST_ITEM_ROW + row]:
            chosen = None if best[row] < 0 else catalogue.offer_ids()[int(best[row])].as_py()
            assert chosen == (passing[0]["offer_id"] if passing else None)


def test_best_offer_is_cheapest_or_nearest_of_eligible_offers(catalogue: Catalogue) -> None:
    rows = np.array([3, 2, 5])

    def prices(listings: Any) -> Any:
        return catalogue.numbers("offer.price")[listings]

    def distances(listings: Any) -> Any:
        return catalogue.distances_km("offer.place", (48.85, 2.35), listings)

    def best(keys: list[Any], *filters: Filter) -> list[str | None]:
        found = catalogue.best_offers(rows, catalogue.eligible(filters), keys)
        return [None if listing < 0 else catalogue.offer_ids()[int(listing)].as_py() for listing in found]

    assert best([prices]) == ["b", "c", None] and best([distances, prices]) == ["a", "c", None]
    dear = Range(op="range", column="offer.price", min=20)
    assert best([prices], dear) == ["a", None, None]


def test_nearest_items_by_their_offers(catalogue: Catalogue) -> None:
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
def test_conditions_that_do_not_fit_are_refused(
    catalogue: Catalogue, condition: Filter, message: str
) -> None:
    with pytest.raises(UserError) as error:
        catalogue.eligible([condition])
    assert message in str(error.value)
    with pytest.raises(UserError, match="there are no offers here"):
        Catalogue(catalogue.items).eligible([condition])
