"""A request's few ids in a large map, against the way that many ids take."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.id_map import UNKNOWN_ROW, Id, IdMap

NUMBERS = np.random.default_rng(3).permutation(5_000).astype(np.int64) * 3 - 4_000


@pytest.fixture(scope="module", params=["int64", "string"])
def large(request: pytest.FixtureRequest) -> IdMap:
    """5,000 ids in no order, with negative numbers, or accents."""
    ids = pa.array(NUMBERS) if request.param == "int64" else pa.array([f"é{number}" for number in NUMBERS])
    return IdMap(ids, first_row=2, name="item_id")


@given(st.lists(st.integers(-4_010, 11_010), max_size=20))
def test_few_and_many_agree(large: IdMap, numbers: list[int]) -> None:
    ids: list[Id] = list(numbers) if pa.types.is_int64(large.type) else [f"é{number}" for number in numbers]
    row_of = {int(number): place + 2 for place, number in enumerate(NUMBERS)}
    expected = [row_of.get(number, UNKNOWN_ROW) for number in numbers]
    assert large.rows(ids).tolist() == expected
    assert large.rows(ids * 100).tolist() == expected * 100
    assert large.rows(pa.array([*ids, None], large.type)).tolist() == [*expected, UNKNOWN_ROW]
