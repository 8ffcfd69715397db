"""Files of offers: what is read, and what is refused."""

from pathlib import Path

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
        (pa.table({"offer_id": [1], "item_id": [10], "x": [b"y"]}), "column 'x' holds binary"),
        (
            pa.table({"offer_id": [1.5], "item_id": [10]}),
            "column offer_id holds double, neither text nor whole numbers",
        ),
        (pa.table({"offer_id": [1], "item_id": ["ten"]}), "items of this bundle have ids of type int64"),
        (pa.table({"offer_id": [1], "item_id": [10], "x": [[[1]]]}), "column 'x' holds list"),
    ],
)
def test_malformed_offer_files_are_refused(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "offers.parquet"
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=message):
        read_offers(path, IdMap(ITEMS.column("item_id"), first_row=FIRST_ITEM_ROW, name="item_id"))
