"""The same log in every format gives the same dataset; event types and row filters."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.prepare import prepare
from tests.passerelle.conftest import WriteCsv, config_of, histories

ROWS = [("zoé", "b,1", 20), ("al", "c", 5), ("zoé", "a::2", 10), ("al", "日本", 7), ("al", "a::2", 5)]
EXPECTED = {"al": ["c", "a::2", "日本"], "zoé": ["a::2", "b,1"]}


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> None:
    folder.mkdir(exist_ok=True)
    data = text.encode(encoding)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def lines(separator: str, header: bool = True, rows: list[tuple[Any, ...]] = ROWS) -> str:
    return "".join(
        separator.join(map(str, row)) + "\n"
        for row in [*([("user", "item", "time")] if header else []), *rows]
    )


def as_csv(folder: Path) -> dict[str, Any]:
    write(folder, "log.csv", 'user,item,time\nzoé,"b,1",20\nal,c,5\nzoé,a::2,10\nal,日本,7\nal,a::2,5\n')
    return {}


def as_csv_with_byte_order_mark_and_windows_lines(folder: Path) -> dict[str, Any]:
    write(folder, "log.csv", lines(";").replace("\n", "\r\n"), "utf-8-sig")
    return {"separator": ";"}


def as_headless_tabs_in_utf_16(folder: Path) -> dict[str, Any]:
    write(folder, "log.csv", lines("\t", header=False), "utf-16")
    return {"separator": "\t", "columns": ["user", "item", "time"], "encoding": "utf-16", "quoting": False}


def as_long_separator(folder: Path) -> dict[str, Any]:
    write(folder, "log.csv.gz", lines("|::|"))
    return {"separator": "|::|", "quoting": False}


def as_headless_long_separator(folder: Path) -> dict[str, Any]:
    write(
        folder,
        "log.csv",
        lines("éé", header=False, rows=[(user.replace("é", "e"), *rest) for user, *rest in ROWS]),
    )
    return {"separator": "éé", "quoting": False, "columns": ["user", "item", "time"]}


def as_parquet(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    table = pa.table(
        {
            "noise": [1] * 5,
            "time": [row[2] for row in ROWS],
            "item": [row[1] for row in ROWS],
            "user": [row[0] for row in ROWS],
        }
    )
    pa.parquet.write_table(table, folder / "log.pq", row_group_size=2)
    return {"files": ["log.pq"], "format": "parquet"}


def as_gzipped_parquet(folder: Path) -> dict[str, Any]:
    as_parquet(folder)
    (folder / "log.pq.gz").write_bytes(gzip.compress((folder / "log.pq").read_bytes()))
    (folder / "log.pq").unlink()
    return {"files": ["log.pq"], "format": "parquet"}


def as_jsonl(folder: Path) -> dict[str, Any]:
    records = [{"time": time, "user": user, "item": item, "deep": {"a": [1]}} for user, item, time in ROWS]
    write(folder, "log.jsonl.gz", "\n".join(map(json.dumps, records)) + "\n\n")
    return {"files": ["log.jsonl"], "format": "jsonl"}


def as_several_files(folder: Path) -> dict[str, Any]:
    write(folder, "day-1.csv", lines(";", rows=ROWS[:2]))
    write(folder, "day-2.csv.gz", lines(";", rows=ROWS[2:]))
    write(folder, "day-2.csv", lines(";", rows=ROWS[2:]))  # unpacked beside its archive: read once
    return {"files": ["day-*.csv"], "separator": ";"}


@pytest.mark.parametrize(
    "lay",
    [
        as_csv,
        as_csv_with_byte_order_mark_and_windows_lines,
        as_headless_tabs_in_utf_16,
        as_long_separator,
        as_headless_long_separator,
        as_parquet,
        as_gzipped_parquet,
        as_jsonl,
        as_several_files,
    ],
)
def test_every_format_gives_the_same_events(lay: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    events = lay(tmp_path / "logs")
    dataset = prepare(config_of(events), tmp_path / "logs", tmp_path / "out")
    assert {user.replace("zoe", "zoé"): items for user, items in histories(dataset).items()} == EXPECTED
    assert dataset.timestamps_ms_E.tolist() == [5000, 5000, 7000, 10000, 20000]
    assert dataset.manifest.quality["rows_read"] == 5


def test_blocks_are_read_piece_by_piece(
    tmp_path: Path, write_csv: WriteCsv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passerelle.prepare.readers.csv_files.BLOCK_BYTES", 1024)
    rows = [(f"user {position % 7}", f"item {position % 101}", position) for position in range(5000)]
    source = write_csv(rows)
    write(source, "long.csv", lines("::", rows=rows))
    steps: list[tuple[str, int, int]] = []
    plain = prepare(
        config_of(),
        source,
        tmp_path / "plain",
        progress=lambda stage, done, total: steps.append((stage, done, total)),
    )
    recoded = prepare(
        config_of({"files": ["long.csv"], "separator": "::", "quoting": False}), source, tmp_path / "recoded"
    )
    assert plain.fingerprint() == recoded.fingerprint()
    assert histories(plain)["user 3"] == [f"item {position % 101}" for position in range(3, 5000, 7)]
    reading = [(done, total) for stage, done, total in steps if stage.startswith("read events")]
    assert len(reading) > 10
    assert reading == sorted(reading)
    assert all(done <= total for _, done, total in steps)


def test_ids_in_jsonl_that_look_like_dates_stay_text(tmp_path: Path) -> None:
    records = [
        {"user": "2020-01-01", "item": 7, "time": "2020-01-01T00:00:00"},
        {"user": "2020-01-02 00:00:00", "item": 8, "time": "2020-01-01 01:00"},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    events = {"files": ["log.jsonl"], "format": "jsonl", "timestamp_unit": "iso"}
    dataset = prepare(config_of(events), tmp_path, tmp_path / "out")
    assert histories(dataset) == {"2020-01-01": ["7"], "2020-01-02 00:00:00": ["8"]}
    assert dataset.timestamps_ms_E.tolist() == [1577836800000, 1577840400000]


def test_several_event_types_and_filters(tmp_path: Path, write_csv: WriteCsv) -> None:
    source = write_csv(
        [
            ("u", "a", 1, "click", 3, "web"),
            ("u", "b", 2, "buy", 0, "app"),
            ("u", "b", 3, "buy", 9, "app"),
            ("u", "c", 4, "buy", "", "web"),
            ("u", "d", 5, "look", 5, "web"),
            ("u", "e", 6, "buy", 5, ""),
            ("u", "f", 7, "buy", 5, "bot-9"),
        ],
        header=("user", "item", "time", "type", "amount", "device"),
    )
    write_csv([("v", "b", 9)], name="visits.csv")
    where = [
        {"column": "amount", "operator": ">", "value": 0},
        {"column": "device", "operator": "not_null"},
        {"column": "device", "operator": "not_matches", "value": "^bot"},
    ]
    typed = {"event_type_column": "type", "event_weights": {"buy": 5, "click": 0.5}, "where": where}
    dataset = prepare(
        config_of([typed, {"files": ["visits.csv"], "event_type": "visit", "weight": 2}]),
        source,
        tmp_path / "out",
    )
    assert histories(dataset) == {"u": ["a", "b"], "v": ["b"]}
    assert dataset.manifest.event_types == ("buy", "click", "visit")
    assert dataset.event_types_E.tolist() == [1, 0, 2]
    assert dataset.weights_E.tolist() == [0.5, 5, 2]
    quality = dataset.manifest.quality
    assert {reason: count for reason, count in quality["dropped"].items() if count} == {
        "where amount > 0": 2,
        "where device not_null": 1,
        "where device not_matches ^bot": 1,
        "event_type_not_listed": 1,
    }
    assert quality["events_by_type"] == {"buy": 1, "click": 1, "visit": 1}


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ({"operator": ">=", "value": 10}, [10, 200]),
        ({"operator": "<", "value": 10}, [9]),
        ({"operator": "<=", "value": 10}, [9, 10]),
        ({"operator": "==", "value": 10}, [10]),
        ({"operator": "!=", "value": 10}, [9, 200]),
        ({"operator": ">", "value": "10"}, [9, 200]),  # text: "9" is after "10"
        ({"operator": "in", "value": ["9", "200"]}, [9, 200]),
        ({"operator": "matches", "value": "0$"}, [10, 200]),
        ({"operator": "not_null"}, [9, 10, 200]),
        ({"operator": "is_null"}, [-1]),
    ],
)
def test_conditions(condition: dict[str, Any], kept: list[int], tmp_path: Path, write_csv: WriteCsv) -> None:
    source = write_csv(
        [("u", "i", 9, 9), ("u", "i", 10, 10), ("u", "i", 200, 200), ("u", "i", -1, "")],
        header=("user", "item", "time", "x"),
    )
    dataset = prepare(config_of({"where": [{"column": "x", **condition}]}), source, tmp_path / "out")
    assert dataset.timestamps_ms_E.tolist() == [1000 * time for time in kept]
