"""Files, columns and results that `prepare` refuses: one line that says what
is wrong, and nothing on disk.
"""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.errors import UserError
from passerelle.prepare import prepare
from tests.passerelle.conftest import WriteCsv, config_of, histories
from tests.support.bad_input import GOOD, refused

# Files


def test_missing_file(write_csv: WriteCsv) -> None:
    source = write_csv(GOOD, name="other.csv")
    refused(config_of(), source, r"logs: no file log\.csv or log\.csv\.gz; it holds other\.csv$")


def test_missing_folder(tmp_path: Path) -> None:
    refused(
        config_of(),
        tmp_path / "nowhere",
        r"nowhere: no file log\.csv or log\.csv\.gz; it is empty or not a folder$",
    )


def test_truncated_gzip(write_csv: WriteCsv) -> None:
    source = write_csv([("u", f"item {position}", position) for position in range(5000)])
    packed = gzip.compress((source / "log.csv").read_bytes())
    (source / "log.csv").unlink()
    for damaged in (
        packed[: len(packed) // 2],
        packed[:-4],
        b"not gzip",
        packed[:3000] + b"\xff\xff" + packed[3002:],
    ):
        (source / "log.csv.gz").write_bytes(damaged)
        refused(config_of(), source, r"log\.csv\.gz: truncated or damaged compressed file .*fetch it again")
        refused(
            config_of({"columns": ["user", "item", "time"]}),
            source,
            r"log\.csv\.gz: truncated or damaged compressed file",
        )


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda _: b"PAR1", lambda data: data[:200] + b"\0" * 100 + data[300:]],
)
def test_damaged_parquet(damage: Any, write_csv: WriteCsv) -> None:
    source = write_csv(GOOD)
    table = pa.table(
        {"user": ["u"] * 999, "item": [str(position) for position in range(999)], "time": range(999)}
    )
    pa.parquet.write_table(table, source / "log.parquet", use_dictionary=False)
    (source / "log.parquet").write_bytes(damage((source / "log.parquet").read_bytes()))
    refused(
        config_of({"files": ["log.parquet"], "format": "parquet"}),
        source,
        r"log\.parquet: cannot be read as parquet \(",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"user": "u", "item": "a", "time": 1}\n{"user": "u", "it',
            r"log\.jsonl: a line that is not JSON in 1 rows, first line 2",
        ),
        ("[1, 2]\n", r"log\.jsonl: a line that is not a JSON object in 1 rows, first line 1: '\[1, 2\]'"),
        ("", r"no event is left of 0 rows read"),
        ('{"user": "u", "time": 1, "itm": 1}\n', r"log\.jsonl: no column 'item'; there are: user, time, itm"),
        (
            '{"user": {"id": 1}, "item": "a", "time": 1}\n',
            r"log\.jsonl: column 'user' holds objects",
        ),
    ],
)
def test_damaged_jsonl(text: str, message: str, write_csv: WriteCsv) -> None:
    source = write_csv(GOOD)
    (source / "log.jsonl").write_text(text)
    refused(config_of({"files": ["log.jsonl"], "format": "jsonl"}), source, message)


def test_empty_files(write_csv: WriteCsv) -> None:
    source = write_csv([])
    refused(config_of(), source, r"no event is left of 0 rows read")
    (source / "log.csv").write_text("")
    refused(config_of(), source, r"no event is left of 0 rows read")
    refused(config_of({"columns": ["user", "item", "time"]}), source, r"no event is left of 0 rows read")


def test_wrong_encoding(write_csv: WriteCsv) -> None:
    source = write_csv([])
    (source / "log.csv").write_bytes("user,item,time\nu,café,1\n".encode("latin-1"))
    for changes in ({}, {"columns": ["user", "item", "time"]}):
        refused(config_of(changes), source, r'log\.csv: .*not utf-8 text, set encoding, such as "latin-1"')
    refused(
        config_of({"separator": "::", "quoting": False}), source, r"log\.csv: not utf-8 text .*: set encoding"
    )
    config = config_of({"encoding": "latin-1"})
    assert histories(prepare(config, source, source.parent / "fine")) == {"u": ["café"]}


def test_separator_stand_in_inside_the_file(write_csv: WriteCsv) -> None:
    source = write_csv([])
    (source / "log.csv").write_text("user::item::time\nu::a\x1fb::1\n")
    refused(
        config_of({"separator": "::", "quoting": False}),
        source,
        r"log\.csv: holds the control character U\+001F",
    )


# Columns and lines


def test_wrong_columns(write_csv: WriteCsv) -> None:
    source = write_csv(GOOD, header=("user", "product", "time"))
    refused(config_of(), source, r"log\.csv: no column 'item'; there are: user, product, time$")
    source = write_csv([(*row, 1) for row in GOOD], header=("user", "item", "time", "time"))
    refused(config_of(), source, r"log\.csv: more than one column 'time'")
    source = write_csv(GOOD)
    items = {"files": ["log.csv"], "id": "item", "features": {"title": {"kind": "text", "column": "name"}}}
    refused(config_of(items=items), source, r"log\.csv: no column 'name'; there are: user, item, time$")
    items = {"features": {"title": {"kind": "text", "column": "name", "from_events": "last"}}}
    refused(
        config_of(items=items),
        source,
        r"features come from the event files' column 'name', but none of them has it",
    )


def test_lines_with_too_few_or_too_many_values(write_csv: WriteCsv) -> None:
    source = write_csv([*GOOD, ("u", "c"), ("u", "c", 4, "more")])
    refused(
        config_of(),
        source,
        r"log\.csv: a wrong number of values in 2 rows, first 'u,c' has 2 values, not 3: .* on_bad_rows = "
        r"\"drop\"$",
    )
    dataset = prepare(config_of(on_bad_rows="drop"), source, source.parent / "fine")
    assert histories(dataset) == {"u": ["a", "b"], "v": ["a"]}
    assert dataset.manifest.quality["dropped"]["wrong_number_of_values"] == 2
    assert dataset.manifest.quality["rows_read"] == 5


# Results


def test_existing_result(write_csv: WriteCsv, tmp_path: Path) -> None:
    source, out = write_csv(GOOD), tmp_path / "result"
    first = prepare(config_of(), source, out)
    before = sorted(path.stat().st_mtime_ns for path in out.iterdir())
    with pytest.raises(UserError, match=r"result already exists: choose another --out, or pass --overwrite"):
        prepare(config_of(), source, out)
    with pytest.raises(UserError, match="no column 'gone'"):
        prepare(config_of({"item_id": "gone"}), source, out, overwrite=True)
    assert sorted(path.stat().st_mtime_ns for path in out.iterdir()) == before
    write_csv([*GOOD, ("w", "a", 1)])
    assert prepare(config_of(), source, out, overwrite=True).num_users == first.num_users + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "result"]


def test_overwrite_keeps_folders_of_other_programs(write_csv: WriteCsv, tmp_path: Path) -> None:
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UserError, match=r"photos: --overwrite replaces only a directory made by passerelle"):
        prepare(config_of(), write_csv(GOOD), precious, overwrite=True)
    assert (precious / "cat.jpg").read_bytes() == b"cat"
