"""Vectors, timestamps and places: read from files of every format, and refused where they are none."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.dataset import Dataset, FeatureColumn, open_dataset
from passerelle.errors import UserError
from passerelle.prepare import PrepareConfig, prepare
from tests.passerelle.conftest import WriteCsv, config_of

EVENTS = [("u", item, time) for time, item in enumerate("abcd")]
HEADER = ("id", "opens", "lat", "lon", "image")
FEATURES: dict[str, dict[str, Any]] = {
    "opens": {"kind": "timestamp", "column": "opens", "timestamp_unit": "iso"},
    "venue": {"kind": "place", "latitude": "lat", "longitude": "lon"},
    "image": {"kind": "vector", "column": "image", "separator": " ", "width": 2},
}


def described(
    features: dict[str, dict[str, Any]] = FEATURES, table: dict[str, Any] | None = None, **rest: Any
) -> PrepareConfig:
    return config_of(
        items={"files": ["items.csv"], "id": "id", "features": features, **(table or {})}, **rest
    )


@pytest.fixture
def source(write_csv: WriteCsv) -> Path:
    rows = [
        ("a", "1970-01-02", "48.85", "2.35", "1 -2.5"),
        ("b", "", "90", "", ""),
        ("c", "1970-01-01T00:00:01+01:00", "-90", "180", "0 0"),
    ]
    write_csv(rows, name="items.csv", header=HEADER)
    return write_csv(EVENTS)


def test_kinds_of_text_files(source: Path, tmp_path: Path) -> None:
    dataset = open_dataset(prepare(described(), source, tmp_path / "out").path)
    assert dataset.items.to_pydict() == {
        "item_id": ["a", "b", "c", "d"],
        "opens": [86_400_000, None, -3_599_000, None],
        "venue": [{"latitude": 48.85, "longitude": 2.35}, None, {"latitude": -90, "longitude": 180}, None],
        "image": [[1, -2.5], None, [0, 0], None],
    }
    assert dataset.items.schema.field("image").type == pa.large_list(pa.float32())
    assert dataset.manifest.item_features == (
        FeatureColumn(name="opens", kind="timestamp"),
        FeatureColumn(name="venue", kind="place"),
        FeatureColumn(name="image", kind="vector", width=2),
    )
    assert dataset.manifest.quality["missing_values"] == {
        "items.opens": 2,
        "items.venue": 2,
        "items.image": 2,
    }


@pytest.mark.parametrize(
    "vectors",
    [pa.list_(pa.float64()), pa.list_(pa.int32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float16())],
)
def test_vectors_of_parquet(source: Path, tmp_path: Path, vectors: pa.DataType) -> None:
    table = pa.table({"id": ["c", "a", "d"], "image": pa.array([[3, 4], None, [5, 6]], vectors)})
    pyarrow.parquet.write_table(table, source / "items.parquet")
    config = described(
        {"image": {"kind": "vector", "column": "image", "width": 2}},
        {"files": ["items.parquet"], "format": "parquet"},
    )
    assert prepare(config, source, tmp_path / "out").items["image"].to_pylist() == [
        None,
        None,
        [3, 4],
        [5, 6],
    ]


def prepared_with(write_csv: WriteCsv, row: tuple[str, ...], **rest: Any) -> Dataset:
    source = write_csv(EVENTS)
    write_csv([row], name="items.csv", header=HEADER)
    return prepare(described(**rest), source, source.parent / "out")


@pytest.mark.parametrize(
    ("row", "feature", "said"),
    [
        (
            ("a", "1970-13-02", "1", "1", "1 2"),
            "opens",
            r"no timestamp in column 'opens' for items\.opens in 1 rows, first '1970-13-02'",
        ),
        (
            ("a", "", "91", "1", "1 2"),
            "venue",
            r"no place on Earth .* in column 'lat', 'lon' for items\.venue in 1 rows, first '91, 1'",
        ),
        (
            ("a", "", "north", "1", "1 2"),
            "venue",
            r"no number in column 'lat', 'lon' for items\.venue in 1 rows, first 'north'",
        ),
        (
            ("a", "", "1", "1", "1 2 3"),
            "image",
            r"no vector of 2 numbers in column 'image' for items\.image in 1 rows, first '1 2 3'",
        ),
        (
            ("a", "", "1", "1", "1 nan"),
            "image",
            r"no vector of 2 numbers in column 'image' for items\.image in 1 rows, first '1 nan'",
        ),
    ],
)
def test_bad_values_are_refused_or_missing(
    write_csv: WriteCsv, row: tuple[str, ...], feature: str, said: str
) -> None:
    with pytest.raises(UserError, match=rf"items\.csv: {said}: mend them"):
        prepared_with(write_csv, row)
    dataset = prepared_with(write_csv, row, on_bad_rows="drop")
    assert dataset.items[feature].to_pylist() == [None] * 4
    assert dataset.manifest.quality["bad_values"] == {f"items.{feature}": 1}


def test_vectors_of_what_are_none(write_csv: WriteCsv) -> None:
    features = {"image": {"kind": "vector", "column": "image", "width": 2}}
    with pytest.raises(
        UserError,
        match=r"feature image, column 'image': holds text: say in separator what stands between two numbers",
    ):
        prepared_with(write_csv, ("a", "", "", "", "1 2"), features=features)
