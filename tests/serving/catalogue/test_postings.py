"""Rows that have one of few or many values, against a loop over rows."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.errors import UserError
from serving.catalogue.postings import make_postings

INTEGERS = st.integers(-20, 20) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
FLOATS = st.integers(-20, 20).map(float) | st.sampled_from([0.5, -0.0, 1e300, 2.0**53])
TEXTS = st.sampled_from(["", "a", "b", "ab", "é", "e\u0301", "商品", "\U0001f600"]) | st.text(
    alphabet="abc", max_size=3
)
ASKED_NUMBERS = INTEGERS | FLOATS | st.sampled_from([2**63, 10**400, -(10**400), 1.5])
ASKED_TEXTS = TEXTS | st.just("\ud800")


def rows_of(values: list[Any], kind: pa.DataType, asked: list[Any]) -> list[int]:
    column = pa.chunked_array([pa.array(values, kind)])
    return sorted(make_postings(column, 2).rows_with(asked, "x")[0].tolist())


def check(values: list[Any], kind: pa.DataType, asked: list[Any]) -> None:
    expected = [
        row
        for row, value in enumerate(values, start=2)
        if value is not None and any(value == one for one in asked)
    ]
    assert rows_of(values, kind, asked) == expected


@given(st.lists(st.none() | INTEGERS, max_size=40), st.lists(ASKED_NUMBERS, max_size=30))
def test_rows_of_integers(values: list[Any], asked: list[Any]) -> None:
    check(values, pa.int64(), asked)


@given(st.lists(st.none() | FLOATS, max_size=40), st.lists(ASKED_NUMBERS, max_size=30))
def test_rows_of_floats(values: list[Any], asked: list[Any]) -> None:
    check(values, pa.float64(), asked)


@given(st.lists(st.none() | TEXTS, max_size=40), st.lists(ASKED_TEXTS, max_size=30), st.booleans())
def test_rows_of_texts(values: list[Any], asked: list[Any], large: bool) -> None:
    check(values, pa.large_string() if large else pa.string(), asked)


@given(st.lists(st.none() | st.booleans(), max_size=10), st.lists(st.booleans(), max_size=10))
def test_rows_of_booleans(values: list[Any], asked: list[Any]) -> None:
    check(values, pa.bool_(), asked)


def test_rows_of_other_column_types() -> None:
    many = list(range(12))
    assert rows_of([0.5, 2.0, float("nan"), None], pa.float16(), [0.5, 2]) == [2, 3]
    assert rows_of([3, 5, None], pa.uint64(), many) == [2, 3] and rows_of([3, 50], pa.int8(), many) == [2]
    assert rows_of([["a", None], None, [], ["b", "a"]], pa.list_(pa.string()), ["a"]) == [2, 5]
    assert rows_of([None, float("inf"), float("nan")], pa.float64(), [float(number) for number in many]) == []


def test_truth_values_of_a_column_of_text() -> None:
    """`prepare` writes a column of truth values as text."""
    assert rows_of(["true", "false", None, "true"], pa.string(), [True]) == [2, 5]
    assert rows_of(["True", "1"], pa.string(), [True]) == []


@pytest.mark.parametrize("asked", [[1], ["a", 1], ["a", 0.5]])
def test_values_of_another_type_are_refused(asked: list[Any]) -> None:
    with pytest.raises(UserError, match=f"x holds text, got {asked[-1]}"):
        rows_of(["a"], pa.string(), asked)
