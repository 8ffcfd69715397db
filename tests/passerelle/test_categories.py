"""Pairs and codes of columns of categories, against a loop over rows."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.categories import category_codes, explode

VALUES = st.sampled_from(["", "a", "b", "é"])
SINGLES = st.lists(st.none() | VALUES, max_size=20)
LISTS = st.lists(st.none() | st.lists(VALUES, max_size=4), max_size=20)


def pairs(rows: list[Any]) -> list[tuple[int, str]]:
    return [
        (row, value)
        for row, values in enumerate(rows)
        for value in ([] if values is None else values if isinstance(values, list) else [values])
    ]


def check(rows: list[Any], column: pa.Array | pa.ChunkedArray) -> None:
    row_T, value_T = explode(column)
    assert list(zip(row_T.tolist(), value_T.cast(pa.string()).to_pylist(), strict=True)) == pairs(rows)
    codes = category_codes(column)
    distinct = list(dict.fromkeys(value for _, value in pairs(rows)))
    assert codes.row_T.tolist() == row_T.tolist() and codes.num_values == len(distinct)
    assert [distinct[code] for code in codes.code_T] == [value for _, value in pairs(rows)]


@given(SINGLES)
def test_single_values_are_exploded_as_by_a_loop(rows: list[Any]) -> None:
    check(rows, pa.array(rows, pa.string()))
    check(rows, pa.array(rows, pa.large_string()))
    check(rows, pa.array(rows, pa.string()).dictionary_encode())


@given(LISTS, st.integers(0, 20))
def test_lists_are_exploded_as_by_a_loop(rows: list[Any], cut: int) -> None:
    column = pa.array(rows, pa.list_(pa.string()))
    check(rows, column)
    check(rows, pa.array(rows, pa.large_list(pa.string())))
    check(rows, pa.chunked_array([column[:cut], column[cut:]]))
    check(rows[cut:], column[cut:])


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string())])
def test_null_within_a_list_is_a_pair(kind: pa.DataType) -> None:
    row_T, value_T = explode(pa.array([["a", None], None, [None]], kind))
    assert row_T.tolist() == [0, 0, 2] and value_T.to_pylist() == ["a", None, None]
