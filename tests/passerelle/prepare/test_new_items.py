"""Items that come after a dataset was made, read from a file of the user's own."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from passerelle.errors import UserError
from passerelle.prepare import prepare, read_new_items
from tests.passerelle.conftest import WriteCsv, config_of

FEATURES = {
    "brand": {"kind": "categorical", "column": "brand"},
    "price": {"kind": "numeric", "column": "price"},
    "colour": {"kind": "categorical", "column": "colour", "from_events": "last"},
}
ITEMS: dict[str, Any] = {"files": ["items.csv"], "id": "sku", "features": FEATURES}
HEADER = ("sku", "brand", "price")


def test_new_items_are_read_as_the_first_file(write_csv: WriteCsv, tmp_path: Path) -> None:
    """But for what is made from events, of which there are none."""
    config = config_of(items=ITEMS)
    write_csv([("a", "x", "1"), ("b", "", "2.5")], name="items.csv", header=HEADER)
    source = write_csv([("u", "a", 1, "red"), ("u", "b", 2, "")], header=("user", "item", "time", "colour"))
    before = prepare(config, source, tmp_path / "dataset").items
    write_csv([("d", "y", ""), ("c", "x", "7")], name="later.csv", header=HEADER)
    table = read_new_items(config, source / "later.csv")
    assert table.to_pydict() == {
        "item_id": ["d", "c"],
        "brand": ["y", "x"],
        "price": [None, 7.0],
        "colour": [None, None],
    }
    assert table.cast(before.schema).schema == before.schema


@pytest.mark.parametrize(
    ("changes", "rows", "message"),
    [
        ({"items": {"features": {}}}, [("a", "x", "1")], "has no table of items"),
        ({}, [("a", "x", "1"), ("", "x", "1")], r"1 rows have no item_id \(column 'sku'\)"),
        ({}, [("a", "x", "cheap")], r"no number in column 'price' for items.price.*'cheap'"),
        ({"item_id_type": "int64"}, [("a", "x", "1")], "ids that are no integers"),
        ({}, [("a", "x", "1"), ("a", "y", "2")], r"1 rows repeat an item_id \(column 'sku'\)"),
        ({}, [], "there is no row in it"),
    ],
)
def test_files_that_cannot_be_read(
    changes: dict[str, Any], rows: list[Any], message: str, write_csv: WriteCsv
) -> None:
    source = write_csv(rows, name="later.csv", header=HEADER)
    config = config_of(**({"items": ITEMS} | changes))
    with pytest.raises(UserError, match=message):
        read_new_items(config, source / "later.csv")


def test_the_named_file_is_read(write_csv: WriteCsv) -> None:
    """Whatever stands in its name, and whatever stands beside it."""
    folder = write_csv([("a", "x", "1")], name="new[1].csv", header=HEADER)
    (folder / "new[1].csv.gz").write_bytes(gzip.compress(b"sku,brand,price\nb,x,1\n"))
    write_csv([("c", "x", "1")], name="new1.csv", header=HEADER)
    for name, item_id in (("new[1].csv", "a"), ("new[1].csv.gz", "b")):
        assert read_new_items(config_of(items=ITEMS), folder / name)["item_id"].to_pylist() == [item_id]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"later.csv: there is no such file"):
        read_new_items(config_of(items=ITEMS), tmp_path / "later.csv")
