"""Descriptions of logs that make no sense are refused before a file is opened."""

from pathlib import Path
from typing import Any

import pytest

from passerelle.errors import UserError
from passerelle.prepare import load_prepare_config
from tests.passerelle.conftest import config_of

TEXT = {"kind": "text", "column": "c"}
VECTOR = {"kind": "vector", "column": "c", "width": 2}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("", {"titel": "x"}, r"titel: unknown key; did you mean title\?"),
        ("", {"title": "name"}, r"title 'name' is not an item feature; there are: none"),
        ("", {"events": []}, r"describe at least one group of files"),
        ("", {"item_id_type": "int32"}, r"item_id_type: .*'int64' or 'string'"),
        (
            "",
            {"source": {"folder": "x", "page": "p", "instructions": "i", "url": "http://x"}},
            r"source: url and sha256 go together",
        ),
        (
            "",
            {"filters": {"min_item_event": 3}},
            r"filters\.min_item_event: unknown key; did you mean min_item_events\?",
        ),
        ("", {"items": {"files": ["x"]}}, r"items: files and id go together"),
        ("", {"items": {"features": {"f": TEXT}}}, r"items: features f: no files to take them from"),
        (
            "",
            {"users": {"features": {"user_id": TEXT | {"from_events": "last"}}}},
            r"users: features user_id: the name is taken",
        ),
        (
            "",
            {"items": {"features": {"f": {"kind": "text"}}}},
            r"items\.features\.f: give either column or flags",
        ),
        ("", {"items": {"features": {"f": TEXT | {"sep": "|"}}}}, r"items\.features\.f\.sep: unknown key"),
        (
            "",
            {"items": {"features": {"f": TEXT | {"separator": "|"}}}},
            r"separator is for kind multi_categorical",
        ),
        (
            "",
            {"items": {"features": {"f": {"kind": "text", "flags": ["c"]}}}},
            r"flags make a multi_categorical feature",
        ),
        ("", {"items": {"features": {"f": TEXT | {"extract": r"(\d+)"}}}}, r"extract: name the part to keep"),
        (
            "",
            {"items": {"features": {"f": TEXT | {"extract": r"(?P<value>"}}}},
            r"extract: Invalid regular expression",
        ),
        (
            "",
            {"items": {"features": {"f": TEXT | {"scaling": "log"}}}},
            r"scaling is for kind numeric, not text",
        ),
        ("", {"items": {"features": {"f": {"kind": "vector", "column": "c"}}}}, r"a vector needs its width"),
        (
            "",
            {"items": {"features": {"f": {"kind": "place", "column": "c"}}}},
            r"a place is given by latitude and longitude",
        ),
        (
            "",
            {"items": {"features": {"f": TEXT | {"latitude": "c"}}}},
            r"latitude and longitude make a feature of kind place",
        ),
        (
            "",
            {"items": {"features": {"f": {"kind": "timestamp", "column": "c", "timestamp_format": "%Y"}}}},
            r"timestamp_format goes with",
        ),
        (
            "",
            {"items": {"features": {"f": VECTOR | {"from_events": "last"}}}},
            r"a vector comes from its table as it is",
        ),
        ("events", {"files": []}, r"events\.0: files: name at least one"),
        ("events", {"seperator": ";"}, r"events\.0\.seperator: unknown key; did you mean separator\?"),
        (
            "events",
            {"separator": "::"},
            r"events\.0: separator '::' is more than one byte: set quoting = false",
        ),
        ("events", {"encoding": "utf-9"}, r"events\.0\.encoding: unknown encoding"),
        (
            "events",
            {"format": "parquet", "quoting": False},
            r"events\.0: quoting: only for format csv, not parquet",
        ),
        (
            "events",
            {"timestamp_format": "%Y-%m-%d"},
            r'events\.0: timestamp_format goes with timestamp_unit = "iso"',
        ),
        ("events", {"timestamp_format": "%Y-%j", "timestamp_unit": "iso"}, r"events\.0: %j: known are %Y"),
        (
            "events",
            {"event_weights": {"buy": 1.0}},
            r"events\.0: event_type_column and event_weights go together",
        ),
        (
            "events",
            {"event_type_column": "t", "event_weights": {"a": 1}, "weight": 2},
            r"weight do not go with event_type_column",
        ),
        (
            "events",
            {"event_type_column": "t", "event_weights": {str(n): 1 for n in range(257)}},
            r"257 event types, at most 256",
        ),
        ("events", {"weight": 0}, r"events\.0\.weight: .*greater than 0"),
        (
            "events",
            {"where": [{"colum": "x", "operator": ">", "value": 1}]},
            r"where\.0\.colum: unknown key; did you mean column\?",
        ),
        (
            "events",
            {"where": [{"column": "x", "operator": "in", "value": 1}]},
            r"operator in does not go with value 1",
        ),
        (
            "events",
            {"where": [{"column": "x", "operator": "not_null", "value": 1}]},
            r"operator not_null does not go with value 1",
        ),
        ("events", {"where": [{"column": "x", "operator": ">"}]}, r"operator > does not go with value None"),
        (
            "events",
            {"where": [{"column": "x", "operator": "matches", "value": "("}]},
            r"Invalid regular expression",
        ),
    ],
)
def test_configurations_that_make_no_sense(section: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as failure:
        config_of(values) if section else config_of(**values)
    assert "\n" not in str(failure.value)


def test_unknown_presets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"movielens-1mm: no such preset; did you mean movielens-1m\?"):
        load_prepare_config("movielens-1mm")
    with pytest.raises(
        UserError,
        match=r"qqq: no such preset; presets are globo-news, movielens-100k, .*; or give the path of a TOML "
        r"file",
    ):
        load_prepare_config("qqq")
    with pytest.raises(UserError, match=r"gone\.toml: no such file"):
        load_prepare_config(str(tmp_path / "gone.toml"))
