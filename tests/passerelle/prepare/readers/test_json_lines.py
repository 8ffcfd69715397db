"""JSON lines whose values change their type, however late."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from passerelle.errors import UserError
from passerelle.prepare.config import TableConfig
from passerelle.prepare.readers import read_batches, streams


def read(
    folder: Path, lines: Sequence[Any], columns: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, list[Any]], list[tuple[str, str]]]:
    """The values of the columns, and the lines that were reported; a text is a line as it stands."""
    path = folder / "log.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    bad: list[tuple[str, str]] = []
    config = TableConfig(files=(path.name,), format="jsonl")
    found: dict[str, list[Any]] = {}
    for batch in read_batches(
        path, config, columns, optional, on_bad_line=lambda what, line: bad.append((what, line))
    ):
        for name in batch.schema.names:
            found.setdefault(name, []).extend(batch.column(name).to_pylist())
    return found, bad


def values_of(folder: Path, values: Sequence[Any]) -> list[Any]:
    found, bad = read(folder, [{"x": value} for value in values], ["x"])
    assert not bad
    return found["x"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], [1, 2]),
        ([1, 2.5, None], [1.0, 2.5, None]),
        ([9.5, "", 12, None], ["9.5", None, "12", None]),
        (["A7", 12, True, 1.50], ["A7", "12", "true", "1.5"]),
        ([True, None, False], [True, None, False]),
        ([True, 1], ["true", "1"]),
        ([2**63, 1], [str(2**63), "1"]),
        ([[0.5, 1], [2, 3]], [[0.5, 1.0], [2.0, 3.0]]),
        ([[1, 2], None, []], [[1, 2], None, []]),
        ([["a"], "b", None], [["a"], ["b"], None]),
        ([["a", 1]], [["a", "1"]]),
        (["2024-05-01", "x"], ["2024-05-01", "x"]),
        ([None, None], [None, None]),
    ],
)
def test_values_of_several_types(tmp_path: Path, values: list[Any], expected: list[Any]) -> None:
    assert values_of(tmp_path, values) == expected


def test_numbers_in_text_are_as_they_are_written(tmp_path: Path) -> None:
    lines = ['{"x": "A"}', '{"x": 1.50}', '{"x": 1e3}', '{"x": -0}']
    assert read(tmp_path, lines, ["x"])[0]["x"] == ["A", "1.50", "1e3", "-0"]


@pytest.mark.parametrize("last", [9.99, "x", [1], True])
def test_a_type_that_changes_after_many_lines(tmp_path: Path, last: Any) -> None:
    values = values_of(tmp_path, [10] * 3000 + [last])
    assert len(values) == 3001
    assert values[-1] == ("true" if last is True else last)
    assert set(map(str, values[:-1])) <= {"10", "10.0", "[10]"}


def test_each_block_may_have_a_type_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK_BYTES", 64)
    values = [1] * 20 + ["a"] * 20 + [2.5] * 20
    found = values_of(tmp_path, values)
    assert list(map(str, found)) == list(map(str, values))
    assert {type(value) for value in found} == {int, str, float}


def test_a_column_that_appears_late(tmp_path: Path) -> None:
    lines = [{"x": 1}] * 2000 + [{"x": 2, "y": 0.5}]
    found, _ = read(tmp_path, lines, ["x", "y"])
    assert found["y"] == [None] * 2000 + [0.5] or found["y"] == [None] * 2000 + ["0.5"]
    assert read(tmp_path, lines, ["x"], ["y", "z"])[0].keys() == {"x", "y"}
    with pytest.raises(UserError, match=r"log\.jsonl: no column 'z'; there are: x, y"):
        read(tmp_path, lines, ["x", "z"])


def test_lines_that_are_no_objects_are_reported(tmp_path: Path) -> None:
    found, bad = read(tmp_path, [{"x": 1}, "{", "", "[1]", '{"x": 2} x', {"x": 3}], ["x"])
    assert found["x"] == [1, 3]
    assert [what for what, _ in bad] == [
        "a line that is not JSON",
        "a line that is not a JSON object",
        "a line that is not JSON",
    ]


@pytest.mark.parametrize(("value", "what"), [({"a": 1}, "objects"), ([[1]], "lists of lists")])
def test_nested_values_are_refused(tmp_path: Path, value: Any, what: str) -> None:
    with pytest.raises(UserError, match=f"log.jsonl: column 'x' holds {what}"):
        values_of(tmp_path, ["a", value])
