"""Files of offers: what is read, and what is refused."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.errors import UserError
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW
from serving.catalogue.catalogue import Catalogue
from serving.catalogue.columns import Columns
from serving.catalogue.offers import read_offers
from serving.schemas.filters import Range
from tests.support.offer_catalogue import ITEM_FEATURES, ITEMS


def test_required_columns_and_large_integers_are_filtered(tmp_path: Path) -> None:
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
        (
            pa.table({"offer_id": [[1]], "item_id": [10]}),
            "offer_id holds large_list.*, which is not text",
        ),
        (
            pa.table({"offer_id": [2.0**60], "item_id": [10]}),
            "offer_id holds 1152921504606846976 as a",
        ),
        (
            pa.table({"offer_id": [1], "item_id": ["ten"]}),
            "item_id: ids of this bundle are integers of",
        ),
        (
            pa.table({"offer_id": [1], "item_id": [10.5]}),
            "item_id: ids of this bundle are integers of",
        ),
    ],
)
def test_malformed_offer_files_are_refused(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "offers.parquet"
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=message):
        read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pa.array([Decimal("9.90")]), "numeric", 9.9),
        (pa.array([9.5], pa.float16()), "numeric", 9.5),
        (pa.array([dt.date(2030, 1, 1)]), "timestamp", 1_893_456_000_000),
        (pa.array([dt.datetime(2030, 1, 1)], pa.timestamp("ns")), "timestamp", 1_893_456_000_000),
        (pa.array([["x", "y"]], pa.large_list(pa.large_string())), "multi_categorical", ["x", "y"]),
        (pa.array(["x"], pa.string_view()), "categorical", "x"),
        (pa.array(["x"]).dictionary_encode(), "categorical", "x"),
        (pa.array([b"x"]), "categorical", "x"),
        (pa.array([None]), "categorical", None),
        (pa.array([[[1]]]), None, None),
        (pa.array([b"\xff"]), None, None),
        (pa.array([{"a": 1}]), None, None),
    ],
    ids=lambda value: str(value.type)[:30] if isinstance(value, pa.Array) else None,
)
def test_columns_of_every_type(tmp_path: Path, values: pa.Array, kind: str | None, expected: Any) -> None:
    """Those that no condition reads are left out, and stop nothing."""
    path = tmp_path / "offers.parquet"
    pyarrow.parquet.write_table(pa.table({"offer_id": [1], "item_id": [11], "x": values}), path)
    offers = read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))
    assert [feature.kind for feature in offers.features] == ([] if kind is None else [kind])
    if kind is not None:
        assert offers.table.column("x").to_pylist() == [expected]
    catalogue = Catalogue(Columns(ITEMS, ITEM_FEATURES, offset=FIRST_ITEM_ROW), offers)
    if kind == "numeric":
        low = Range(op="range", column="offer.x", min=9)
        assert np.flatnonzero(catalogue.eligible([low]).rows_R).tolist() == [3]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["11"]),
        pa.array([11.0]),
        pa.array([Decimal("11.00")]),
        pa.array([11], pa.uint8()),
        pa.array(["11"]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type)[:30],
)
def test_ids_of_every_type(tmp_path: Path, ids: pa.Array) -> None:
    path = tmp_path / "offers.parquet"
    pyarrow.parquet.write_table(pa.table({"offer_id": ids, "item_id": ids}), path)
    offers = read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))
    assert offers.item_rows.tolist() == [3]
    assert str(offers.table.column("offer_id")[0]) == "11"
