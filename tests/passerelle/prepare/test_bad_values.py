"""Values that `prepare` refuses or counts: one line that says what is wrong, and nothing on disk."""

import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.prepare import prepare
from tests.passerelle.conftest import WriteCsv, config_of
from tests.support.bad_input import GOOD, refused, with_column


@pytest.mark.parametrize(
    ("events", "bad", "how"),
    [
        ({}, "2021-01-01", "read as s"),
        ({}, "1600000000000", "read as s"),
        ({"timestamp_unit": "ms"}, "soon", "read as ms"),
        ({"timestamp_unit": "iso"}, "2021-02-30", "read as iso"),
        ({"timestamp_unit": "iso", "timestamp_format": "%d.%m.%Y"}, "2021-02-28", r"read as %d\.%m\.%Y"),
    ],
)
def test_unparsable_timestamps(events: dict[str, Any], bad: str, how: str, write_csv: WriteCsv) -> None:
    good = {"%d.%m.%Y": "28.02.2021"}.get(
        events.get("timestamp_format", ""), "2021-02-28" if events.get("timestamp_unit") == "iso" else "5"
    )
    source = with_column("time", [good, bad, good, bad], write_csv)
    refused(
        config_of(events),
        source,
        rf"log\.csv: unparsable timestamps \(column 'time', {how}\) in 2 rows, first row 2: '{bad}': mend "
        r"them, or",
    )
    dataset = prepare(
        config_of(events, on_bad_rows="drop", filters={"drop_duplicates": False}),
        source,
        source.parent / "fine",
    )
    assert dataset.manifest.num_events == 2
    assert dataset.manifest.quality["dropped"]["unparsable_timestamp"] == 2


@pytest.mark.parametrize(
    "bad", ["B0001", "9223372036854775808", "1.5", "-9223372036854775809", "1e3", "0x1F"]
)
def test_ids_that_are_no_integers_of_64_bits(bad: str, write_csv: WriteCsv) -> None:
    source = with_column("item", ["9223372036854775807", "-9223372036854775808", bad], write_csv)
    message = (
        r"log\.csv: item_id that is no integer of 64 bits \(column 'item'; item_id_type = \"string\" .*\) "
        r"in 1 rows, first row 3: "
    )
    message += re.escape(repr(bad))
    refused(config_of(item_id_type="int64"), source, message)
    dataset = prepare(config_of(item_id_type="int64", on_bad_rows="drop"), source, source.parent / "fine")
    assert dataset.items["item_id"].to_pylist() == [-(2**63), 2**63 - 1]
    as_text = prepare(config_of(), source, source.parent / "text")
    assert bad in as_text.items["item_id"].to_pylist()


def test_missing_values_are_dropped_and_counted(write_csv: WriteCsv) -> None:
    source = write_csv([*GOOD, ("", "a", 1), ("u", "", 1), ("u", "a", ""), ("u", "NA", 4), ("", "", "")])
    quality = prepare(config_of({"null_values": ["", "NA"]}), source, source.parent / "fine").manifest.quality
    assert {reason: count for reason, count in quality["dropped"].items() if count} == {
        "missing_user_id": 2,
        "missing_item_id": 2,
        "missing_timestamp": 1,
    }


def test_bad_numbers_in_a_filter_and_in_a_feature(write_csv: WriteCsv) -> None:
    source = write_csv(
        [("u", "a", 1, "3"), ("u", "b", 2, "three")], header=("user", "item", "time", "amount")
    )
    where = {"where": [{"column": "amount", "operator": ">", "value": 1}]}
    refused(
        config_of(where), source, r"log\.csv: no number in column 'amount' in 1 rows, first row 2: 'three'"
    )
    dataset = prepare(config_of(where, on_bad_rows="drop"), source, source.parent / "filtered")
    assert dataset.manifest.quality["dropped"]["unparsable_amount"] == 1
    items = {
        "files": ["log.csv"],
        "id": "item",
        "features": {"amount": {"kind": "numeric", "column": "amount"}},
    }
    refused(
        config_of(items=items),
        source,
        r"log\.csv: no number in column 'amount' for items\.amount in 1 rows, first 'three'",
    )
    dataset = prepare(config_of(items=items, on_bad_rows="drop"), source, source.parent / "featured")
    assert dataset.items["amount"].to_pylist() == [3.0, None]
    assert dataset.manifest.quality["bad_values"] == {"items.amount": 1}


def test_bad_ids_and_flags_in_a_table(write_csv: WriteCsv) -> None:
    source = write_csv([("u", "1", 1)])
    write_csv([("x1", "1"), ("1", "yes")], name="items.csv", header=("id", "new"))
    features = {"new": {"kind": "multi_categorical", "flags": ["new"]}}
    items = {"files": ["items.csv"], "id": "id", "features": features}
    refused(
        config_of(items=items, item_id_type="int64"),
        source,
        r"items\.csv: ids that are no integers of 64 bits \(column 'id'\) in 1 rows, first row 1: 'x1'",
    )
    refused(
        config_of(items=items), source, r"items\.csv: feature new: column 'new': a flag is 0 or 1, got 'yes'"
    )


def test_dates_that_are_announced_as_numbers(write_csv: WriteCsv) -> None:
    source = write_csv(GOOD)
    pa.parquet.write_table(
        pa.table({"user": ["u"], "item": ["a"], "time": pa.array([1], pa.timestamp("us"))}),
        source / "log.parquet",
    )
    events = {"files": ["log.parquet"], "format": "parquet"}
    refused(
        config_of(events),
        source,
        r"log\.parquet: column 'time' holds timestamp\[us\]: write timestamp_unit = \"iso\"",
    )


def test_nothing_left_after_the_filters_says_where_the_rows_went(write_csv: WriteCsv) -> None:
    source = write_csv([*GOOD, GOOD[0], ("", "a", 1)])
    config = config_of(filters={"min_item_events": 2, "min_user_events": 2})
    refused(
        config,
        source,
        r"test: no event is left of 5 rows read; dropped: missing_user_id 1, duplicate 1, item_below_minimum "
        r"\d, user_below_minimum \d$",
    )
