"""Tables in memory become the dataset that files of the same rows become."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.config import validate
from passerelle.errors import UserError
from passerelle.prepare import PrepareConfig, prepare, prepare_table

EVENTS = pa.table(
    {
        "user_id": ["b", "a", "b", "a"],
        "item_id": pa.array([7, 8, 9, 7], pa.int32()),
        "timestamp": pa.array([40, 30, 20, 10], pa.int64()),
    }
)
ITEMS = pa.table(
    {
        "item_id": [7, 8, 9],
        "title": ["Tea", "Milk", None],
        "shelf": pa.array(["dry", "cold", "dry"]).dictionary_encode(),
        "price": [1.5, None, 3.0],
        "tags": [["hot"], ["white", "cold"], []],
        "since": pa.array([datetime(2024, 5, 6, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
        "photo": [b"\xff1", b"\xff2", b"\xff3"],
    }
)


class Frame:
    """A data frame of a library that this package does not import."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def test_tables_become_what_their_files_become(tmp_path: Path) -> None:
    pa.parquet.write_table(EVENTS, tmp_path / "events.parquet")
    values: dict[str, Any] = {
        "name": "shop",
        "user_id_type": "string",
        "item_id_type": "int64",
        "events": [
            {
                "files": ["events.parquet"],
                "format": "parquet",
                "user_id": "user_id",
                "item_id": "item_id",
                "timestamp": "timestamp",
            }
        ],
    }
    of_files = prepare(validate(PrepareConfig, values, "test"), tmp_path, tmp_path / "of_files")
    of_tables = prepare_table(Frame(EVENTS), tmp_path / "of_tables", description={"name": "shop"})
    assert np.array_equal(of_tables.item_rows_E, of_files.item_rows_E)
    assert of_tables.timestamps_ms_E.tolist() == [10_000, 30_000, 20_000, 40_000]
    assert of_tables.users.equals(of_files.users)
    assert of_tables.manifest.config == of_files.manifest.config


def test_columns_become_features_by_type(tmp_path: Path) -> None:
    dataset = prepare_table(EVENTS, tmp_path / "dataset", items=ITEMS)
    kinds = {feature.name: feature.kind for feature in dataset.manifest.item_features}
    assert kinds == {
        "title": "text",
        "shelf": "categorical",
        "price": "numeric",
        "tags": "multi_categorical",
        "since": "timestamp",
    }
    assert dataset.manifest.title == "title"
    assert dataset.items.column("price").to_pylist() == [1.5, None, 3.0]
    assert dataset.items.column("since").to_pylist()[0] == 1_714_953_600_000


@pytest.mark.parametrize("text", [pa.large_string(), pa.string_view()])
def test_layouts_of_text_do_not_matter(text: pa.DataType, tmp_path: Path) -> None:
    events = EVENTS.set_column(0, "user_id", EVENTS.column("user_id").cast(text))
    assert prepare_table(events, tmp_path / "dataset").users.column("user_id").to_pylist() == ["a", "b"]


def test_columns_may_have_other_names_and_times_may_be_dates(tmp_path: Path) -> None:
    times = pa.array([datetime(2024, 1, day) for day in (4, 3, 2, 1)], pa.timestamp("ms"))
    events = pa.table({"who": EVENTS.column("user_id"), "what": EVENTS.column("item_id"), "when": times})
    described = {"events": {"user_id": "who", "item_id": "what", "timestamp": "when"}}
    dataset = prepare_table(events, tmp_path / "dataset", description=described)
    assert dataset.timestamps_ms_E[0] == 1_704_067_200_000


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"events": {"user_id": "who"}}, "events: no column 'who'; there are: user_id, item_id, timestamp"),
        ({"filter": {}}, "filter"),
        ({"title": "label"}, "title 'label' is not an item feature"),
    ],
)
def test_mistakes_are_one_line(description: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepare_table(EVENTS, tmp_path / "dataset", description=description)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "dataset").exists()
