"""Whole datasets of files whose columns have unusual types, or another type in each file."""

import datetime as dt
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.config import validate
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.prepare import tables
from passerelle.prepare.config import PrepareConfig
from passerelle.prepare.pipeline import prepare

FILES = {"user_id": "user", "item_id": "item", "timestamp": "time"}


def write(path: Path, columns: dict[str, Any], **options: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), path, **options)


def prepared(
    folder: Path, features: dict[str, Any] | None = None, null_values: tuple[str, ...] = ("",), **changes: Any
) -> Dataset:
    """The dataset of `events.parquet` and, where there are features, of `items-*.parquet`."""
    described: dict[str, Any] = {
        "name": "t",
        "user_id_type": "string",
        "item_id_type": "string",
        "events": [
            {"files": ["events.parquet"], "format": "parquet", "null_values": list(null_values), **FILES}
        ],
        **changes,
    }
    if features is not None:
        items = {"files": ["items-*.parquet"], "format": "parquet", "id": "sku", "features": features}
        described["items"] = {**items, "null_values": list(null_values)}
    config = validate(PrepareConfig, described, "test", given=True)
    return prepare(config, folder, folder.parent / "dataset", overwrite=True)


def events(items: Any, users: Any = None) -> dict[str, Any]:
    return {
        "user": users or [f"u{row}" for row in range(len(items))],
        "item": items,
        "time": range(len(items)),
    }


UUIDS = [uuid.UUID(int=2), uuid.UUID("9531985d-5d9d-49f8-9818-e811892f902b")]


UUID_BYTES = pa.array([each.bytes for each in UUIDS], pa.binary(16))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([4006381333931.0, 4006381333948.0]), ["4006381333931", "4006381333948"]),
        (pa.array([Decimal("12.00"), Decimal("7.00")]), ["12", "7"]),
        (pa.array([b"a", b"b"]), ["a", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (
            pa.ExtensionArray.from_storage(
                pa.uuid(), pa.array([each.bytes for each in UUIDS], pa.binary(16))
            ),
            [str(each) for each in UUIDS],
        ),
        (pa.array([2**64 - 1, 1], pa.uint64()), ["1", str(2**64 - 1)]),
    ],
    ids=lambda value: str(value.type)[:20] if isinstance(value, pa.Array) else None,
)
def test_ids_of_every_type(tmp_path: Path, ids: pa.Array, expected: list[str]) -> None:
    """The same in both files, so that the items have their titles."""
    write(tmp_path / "logs" / "events.parquet", events(ids))
    write(tmp_path / "logs" / "items-1.parquet", {"sku": ids, "title": ["one", "two"]})
    dataset = prepared(tmp_path / "logs", {"title": {"kind": "text", "column": "title"}})
    assert dataset.items.column("item_id").to_pylist() == expected
    assert dataset.items.column("title").null_count == 0


@pytest.mark.parametrize("ids", [pa.array([2.0**53 + 2]), pa.array([[1]]), pa.array([bytes(range(16))])])
def test_ids_that_nobody_can_tell_are_refused(tmp_path: Path, ids: pa.Array) -> None:
    write(tmp_path / "logs" / "events.parquet", events(ids))
    with pytest.raises(UserError, match=r"events\.parquet: column 'item' holds"):
        prepared(tmp_path / "logs")


def test_missing_values_of_dictionaries(tmp_path: Path) -> None:
    """Among the values of a dictionary and among its codes, at the top and in lists."""
    users = pa.array(["u1", "unknown", "", "u2"]).dictionary_encode()
    tags = pa.array([["x", "unknown"], [""], None, ["y"]], pa.list_(pa.dictionary(pa.int8(), pa.string())))
    write(tmp_path / "logs" / "events.parquet", events(["a", "b", "c", "d"], users))
    write(tmp_path / "logs" / "items-1.parquet", {"sku": ["a", "b", "c", "d"], "tags": tags})
    features = {"tags": {"kind": "multi_categorical", "column": "tags"}}
    dataset = prepared(tmp_path / "logs", features, ("", "unknown"))
    assert dataset.users.column("user_id").to_pylist() == ["u1", "u2"]
    assert dataset.manifest.quality["dropped"]["missing_user_id"] == 2
    assert dataset.items.column("tags").to_pylist() == [["x"], ["y"]]


def test_numbers_that_stand_for_missing_values(tmp_path: Path) -> None:
    write(tmp_path / "logs" / "events.parquet", events(["a", "b"]))
    write(tmp_path / "logs" / "items-1.parquet", {"sku": ["a", "b"], "price": [-1, 3], "size": [-1.0, 0.5]})
    features = {name: {"kind": "numeric", "column": name} for name in ("price", "size")}
    dataset = prepared(tmp_path / "logs", features, ("", "-1"))
    assert dataset.items.column("price").to_pylist() == [None, 3.0]
    assert dataset.items.column("size").to_pylist() == [None, 0.5]


@pytest.mark.parametrize(
    ("kind", "first", "second", "expected"),
    [
        ("numeric", pa.array([1, 2]), pa.array([2.5, 3.5]), [1.0, 2.0, 2.5, 3.5]),
        ("numeric", pa.array(["1", "2"]), pa.array([Decimal("2.5"), None]), [1.0, 2.0, 2.5, None]),
        ("categorical", pa.array([None, None]), pa.array(["x", "y"]), [None, None, "x", "y"]),
        ("categorical", pa.array([1, 2]), pa.array(["x", "y"]), ["1", "2", "x", "y"]),
        (
            "categorical",
            pa.array(["a", "b"]).dictionary_encode(),
            pa.array(["x", "y"], pa.large_string()),
            ["a", "b", "x", "y"],
        ),
        ("multi_categorical", pa.array([["a"], None]), pa.array(["x", "y"]), [["a"], None, ["x"], ["y"]]),
        (
            "timestamp",
            pa.array([dt.datetime(1970, 1, 1)] * 2, pa.timestamp("ns")),
            pa.array([dt.date(1970, 1, 2)] * 2),
            [0, 0, 86_400_000, 86_400_000],
        ),
    ],
)
def test_a_column_of_another_type_in_each_file(
    tmp_path: Path, kind: str, first: pa.Array, second: pa.Array, expected: list[Any]
) -> None:
    write(tmp_path / "logs" / "events.parquet", events(["a", "b", "c", "d"]))
    write(tmp_path / "logs" / "items-1.parquet", {"sku": ["a", "b"], "x": first})
    write(tmp_path / "logs" / "items-2.parquet", {"sku": ["c", "d"], "x": second})
    feature = {"kind": kind, "column": "x", **({"timestamp_unit": "iso"} if kind == "timestamp" else {})}
    assert prepared(tmp_path / "logs", {"x": feature}).items.column("x").to_pylist() == expected


def test_rows_of_files_in_any_order(tmp_path: Path) -> None:
    """Rows of unknown items between them, and one that is repeated: the first one counts."""
    write(tmp_path / "logs" / "events.parquet", events(["a", "b", "c", "d"]))
    write(tmp_path / "logs" / "items-1.parquet", {"sku": ["z", "d", "y", "b"], "x": ["0", "D", "0", "B"]})
    write(tmp_path / "logs" / "items-2.parquet", {"sku": ["x", "b", "a"], "x": ["0", "late", "A"]})
    dataset = prepared(tmp_path / "logs", {"x": {"kind": "categorical", "column": "x"}})
    assert dataset.items.column("x").to_pylist() == ["A", "B", None, "D"]
    assert dataset.manifest.quality["items_without_row"] == 1
    assert dataset.manifest.quality["repeated_item_rows"] == 1


def test_items_without_any_row(tmp_path: Path) -> None:
    write(tmp_path / "logs" / "events.parquet", events(["a", "b"]))
    (tmp_path / "logs" / "items-1.parquet").touch()
    dataset = prepared(tmp_path / "logs", {"x": {"kind": "numeric", "column": "x"}})
    assert dataset.items.column("x").to_pylist() == [None, None]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_far_dates(tmp_path: Path, unit: str) -> None:
    """Of 96 bits, as Spark and Hive write them: nanoseconds of 64 bits end in the year 2262."""
    far = [dt.datetime(9999, 12, 31), dt.datetime(1816, 3, 29), dt.datetime(2030, 1, 1), None]
    write(tmp_path / "logs" / "events.parquet", events(["a", "b", "c", "d"]))
    write(
        tmp_path / "logs" / "items-1.parquet",
        {"sku": ["a", "b", "c", "d"], "ends": pa.array(far, pa.timestamp(unit))},
        use_deprecated_int96_timestamps=unit == "us",
    )
    feature = {"kind": "timestamp", "column": "ends", "timestamp_unit": "iso"}
    expected = [
        None if each is None else int((each - dt.datetime(1970, 1, 1)).total_seconds()) * 1000 for each in far
    ]
    assert prepared(tmp_path / "logs", {"ends": feature}).items.column("ends").to_pylist() == expected


@pytest.mark.parametrize("sentinel", [1.7976931348623157e308, -1e300, 1e39])
def test_sentinels_are_named(tmp_path: Path, sentinel: float) -> None:
    """Their mean and spread would be infinite, and the loss not a number."""
    write(tmp_path / "logs" / "events.parquet", events(["a", "b"]))
    write(tmp_path / "logs" / "items-1.parquet", {"sku": ["a", "b"], "price": [1.0, sentinel]})
    features = {"price": {"kind": "numeric", "column": "price"}}
    with pytest.raises(UserError, match=r"items-1\.parquet: .*beyond 32 bits.* for items\.price in 1 rows"):
        prepared(tmp_path / "logs", features)
    dataset = prepared(tmp_path / "logs", features, on_bad_rows="drop")
    assert dataset.items.column("price").to_pylist() == [1.0, None]
    assert dataset.manifest.quality["bad_values"] == {"items.price": 1}


def test_more_text_than_a_column_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_COLUMN_BYTES", 1000)
    write(tmp_path / "logs" / "events.parquet", events(["a", "b"]))
    write(tmp_path / "logs" / "items-1.parquet", {"sku": ["a", "b"], "text": ["x" * 800, "y" * 800]})
    with pytest.raises(UserError, match=r"items-1\.parquet: feature text: .* GiB of values"):
        prepared(tmp_path / "logs", {"text": {"kind": "text", "column": "text"}})
