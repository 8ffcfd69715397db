"""Merging of what several sources found, against loops."""

from itertools import zip_longest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from passerelle.arrays import Float32Array
from serving.stages.candidate_set import (
    CandidateSet,
    add_pins,
    backfill,
    group_by_source,
    interleave,
    productive_sources,
    rank_by_query,
)
from serving.stages.types import PERSONAL, PINNED, POPULAR, Found

ROWS = st.lists(st.integers(0, 9), unique=True, max_size=6)
VECTORS_RD = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
QUERY_D = np.array([1, -1, 2, 0], dtype=np.float32)


def found(source: str, rows: list[int]) -> Found:
    """Returns rows with scores that fall from the number of rows to 1."""
    return Found(source, np.array(rows, dtype=np.int64), np.arange(len(rows), 0, -1, dtype=np.float32))


def candidates(rows: list[int]) -> CandidateSet:
    one = found(PERSONAL, rows)
    return CandidateSet(one.rows_K, one.scores_K, (one,))


def inner_products(rows: list[int]) -> Float32Array:
    return VECTORS_RD[np.array(rows, dtype=np.int64)] @ QUERY_D


@given(st.lists(ROWS, max_size=4))
def test_interleave_takes_one_row_of_each_source_at_a_time(lists: list[list[int]]) -> None:
    merged = interleave([found(str(number), rows) for number, rows in enumerate(lists)])
    in_order = [row for at_rank in zip_longest(*lists) for row in at_rank if row is not None]
    assert merged.rows_C.tolist() == list(dict.fromkeys(in_order))
    for row, score in zip(merged.rows_C, merged.scores_C, strict=True):
        first = min((rows for rows in lists if row in rows), key=lambda rows: rows.index(row))
        assert score == len(first) - first.index(row)


@given(st.lists(ROWS, min_size=2, max_size=4))
def test_rank_by_query_orders_all_rows_by_inner_product(lists: list[list[int]]) -> None:
    merged = rank_by_query([found("similar", rows) for rows in lists], QUERY_D, VECTORS_RD)
    expected = sorted({row for rows in lists for row in rows}, key=lambda row: (-inner_products([row]), row))
    assert merged.rows_C.tolist() == expected
    np.testing.assert_allclose(merged.scores_C, inner_products(expected), rtol=1e-6)


@given(ROWS, ROWS)
def test_backfill_adds_new_popular_rows_last(rows: list[int], popular: list[int]) -> None:
    fill = [row for row in popular if row not in rows]
    for query_D in (None, QUERY_D):
        filled = backfill(candidates(rows), found(POPULAR, popular), query_D, VECTORS_RD)
        assert filled.rows_C.tolist() == rows + fill
        assert [one.source for one in filled.found] == [PERSONAL, POPULAR]
        assert filled.found[1].rows_K.tolist() == fill
        scores = [len(popular) - popular.index(row) for row in fill]
        np.testing.assert_allclose(
            filled.scores_C[len(rows) :], scores if query_D is None else inner_products(fill), rtol=1e-6
        )


@given(ROWS, ROWS)
def test_pins_are_added_once(rows: list[int], pins: list[int]) -> None:
    pinned = add_pins(candidates(rows), np.array(pins, dtype=np.int64), None, VECTORS_RD)
    new = [row for row in pins if row not in rows]
    assert pinned.rows_C.tolist() == rows + new and pinned.scores_C[len(rows) :].tolist() == [0] * len(new)
    assert pinned.found[-1].source == PINNED and pinned.found[-1].rows_K.tolist() == pins


def test_sources_of_one_name_are_grouped_in_order() -> None:
    parts = [found(POPULAR, [3, 1]), found("near", []), found(POPULAR, [2])]
    assert productive_sources(parts) == [POPULAR, POPULAR]
    grouped = group_by_source(parts)
    assert [(one.source, one.rows_K.tolist()) for one in grouped] == [(POPULAR, [3, 1, 2]), ("near", [])]
