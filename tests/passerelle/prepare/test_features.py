"""Features of items and users: from tables, flag columns, patterns and the events themselves."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.dataset import Dataset, FeatureColumn
from passerelle.prepare import PrepareConfig, prepare
from tests.passerelle.conftest import WriteCsv, config_of

ITEM_FEATURES = {
    "title": {"kind": "text", "column": "name"},
    "year": {"kind": "numeric", "column": "name", "extract": r"\((?P<value>\d{4})\)$"},
    "genres": {"kind": "multi_categorical", "column": "genres", "separator": "|"},
    "traits": {"kind": "multi_categorical", "flags": ["new", "hot"]},
    "shelf": {"kind": "categorical", "column": "shelf"},
    "price": {"kind": "numeric", "column": "price", "from_events": "last"},
    "label": {"kind": "text", "column": "label", "from_events": "most_frequent"},
    "labels": {"kind": "multi_categorical", "column": "label", "from_events": "last", "separator": " "},
}


def feature_config(**rest: Any) -> PrepareConfig:
    items = {"files": ["items.csv"], "id": "id", "features": ITEM_FEATURES}
    users = {"features": {"place": {"kind": "categorical", "column": "place", "from_events": "last"}}}
    return config_of(
        items=items, users=users, title="title", item_id_type="int64", user_id_type="int64", **rest
    )


@pytest.fixture
def with_features(tmp_path: Path, write_csv: WriteCsv) -> Dataset:
    header = ("user", "item", "time", "price", "label", "place")
    events = [
        (1, 10, 100, "5", "red one", "Oslo"),
        (1, 20, 300, "2.50", "red one", ""),
        (2, 20, 200, "9", "blue", "Bergen"),
        (2, 20, 400, "", "blue", "Roma"),
        (2, 30, 1, "", "", ""),
        (3, 40, 500, "1", "only here", "Nice"),
        (3, 50, 500, "1", "only here", "Nice"),
        (3, 10, 50, "7", " ", "Paris"),
    ]
    write_csv(events, header=header)
    table = [
        (20, "Two (1999) ", "B| A||", 1, 0, "x"),
        (10, "One", "", "true", "True", " "),
        (10, "One again (2000)", "C", 0, 0, "y"),
        (30, "(1980) Three (2001)", "A", "", 0, "x"),
        (99, "Never seen", "Z", 1, 1, "z"),
        ("", "No id", "Z", 1, 1, "z"),
    ]
    source = write_csv(table, name="items.csv", header=("id", "name", "genres", "new", "hot", "shelf"))
    return prepare(feature_config(), source, tmp_path / "out")


def test_features(with_features: Dataset) -> None:
    assert with_features.items.to_pydict() == {
        "item_id": [10, 20, 30, 40, 50],
        "title": ["One", "Two (1999)", "(1980) Three (2001)", None, None],
        "year": [None, 1999.0, 2001.0, None, None],
        "genres": [None, ["B", "A"], ["A"], None, None],
        "traits": [["new", "hot"], ["new"], None, None, None],
        "shelf": [None, "x", "x", None, None],
        "price": [5.0, 2.5, None, 1.0, 1.0],
        "label": ["red one", "blue", None, "only here", "only here"],
        "labels": [["red", "one"], ["blue"], None, ["only", "here"], ["only", "here"]],
    }
    assert with_features.users.to_pydict() == {"user_id": [1, 2, 3], "place": ["Oslo", "Roma", "Nice"]}


def test_features_have_the_types_of_their_kinds(with_features: Dataset) -> None:
    types = {field.name: field.type for field in with_features.items.schema}
    assert types == {
        "item_id": pa.int64(),
        **dict.fromkeys(("title", "shelf", "label"), pa.string()),
        **dict.fromkeys(("genres", "traits", "labels"), pa.list_(pa.string())),
        **dict.fromkeys(("year", "price"), pa.float64()),
    }
    manifest = with_features.manifest
    assert manifest.item_features[2] == FeatureColumn(name="genres", kind="multi_categorical")
    assert manifest.user_features == (FeatureColumn(name="place", kind="categorical", from_events=True),)
    assert manifest.title == "title"
    assert manifest.config["items"]["features"]["year"]["extract"] == ITEM_FEATURES["year"]["extract"]


def test_the_report_counts_what_is_missing(with_features: Dataset) -> None:
    quality = with_features.manifest.quality
    assert quality["missing_values"] == {
        "users.place": 0,
        "items.title": 2,
        "items.year": 3,
        "items.genres": 3,
        "items.traits": 3,
        "items.shelf": 3,
        "items.price": 1,
        "items.label": 1,
        "items.labels": 1,
    }
    assert (quality["items_without_row"], quality["repeated_item_rows"], quality["users_without_row"]) == (
        2,
        1,
        0,
    )
    assert (quality["first_event"], quality["last_event"]) == (
        "1970-01-01T00:00:01+00:00",
        "1970-01-01T00:08:20+00:00",
    )
    assert (quality["median_history"], quality["longest_history"], quality["tied_events"]) == (3.0, 3, 1)


def test_lists_in_jsonl_and_parquet_are_lists_of_values(tmp_path: Path, write_csv: WriteCsv) -> None:
    source = write_csv([("u", "a", 1), ("u", "b", 2), ("u", "c", 3)])
    records = [{"id": "a", "tags": ["x", " y ", ""]}, {"id": "b", "tags": []}, {"id": "c", "tags": None}]
    (source / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pa.parquet.write_table(pa.Table.from_pylist(records), source / "items.parquet")
    for kind in ("jsonl", "parquet"):
        items = {
            "files": [f"items.{kind}"],
            "format": kind,
            "id": "id",
            "features": {"tags": {"kind": "multi_categorical", "column": "tags"}},
        }
        dataset = prepare(config_of(items=items), source, tmp_path / kind)
        assert dataset.items["tags"].to_pylist() == [["x", "y"], None, None]


def test_ties_of_the_most_frequent_value_go_to_the_one_met_first(tmp_path: Path, write_csv: WriteCsv) -> None:
    rows = [
        ("u", "a", 9, "z"),
        ("u", "a", 8, "b"),
        ("u", "b", 1, "m"),
        ("u", "b", 2, "z"),
        ("u", "b", 3, "z"),
    ]
    source = write_csv(rows, header=("user", "item", "time", "label"))
    features = {"label": {"kind": "text", "column": "label", "from_events": "most_frequent"}}
    dataset = prepare(config_of(items={"features": features}), source, tmp_path / "out")
    assert dataset.items["label"].to_pylist() == ["z", "z"]
