"""Few ids of a large map, which are searched, against many, which are hashed,
and both against a dictionary.
"""

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
    row_of = {int(number): position + 2 for position, number in enumerate(NUMBERS)}
    expected = [row_of.get(number, UNKNOWN_ROW) for number in numbers]
    assert large.rows(ids).tolist() == expected
    assert large.rows(ids * 100).tolist() == expected * 100
    assert large.rows(pa.array([*ids, None], large.type)).tolist() == [*expected, UNKNOWN_ROW]


int64s = st.integers(-(2**63), 2**63 - 1) | st.integers(-40, 40)
WAYS = ((0, 10**9), (0, 0), (10**9, 0))
"""One by one, all at once, and hashed, as far as there is anything to search in."""
texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.text("aé😀\uffff", max_size=3)


@given(st.data())
def test_rows_of_few_and_of_many_ids(data: st.DataObject) -> None:
    """Unknown ones, several times the same, none at all; of a map that may be empty."""
    kind, values = data.draw(st.sampled_from([(pa.int64(), int64s), (pa.string(), texts)]))
    ids: list[Id] = data.draw(st.lists(values, unique=True, max_size=60))
    id_map = IdMap(pa.array(ids, kind), first_row=2, name="item_id")
    row_of = {value: position + 2 for position, value in enumerate(ids)}
    asked = data.draw(
        st.lists(st.none() | values | (st.sampled_from(ids) if ids else st.none()), max_size=80)
    )
    expected = [UNKNOWN_ROW if value is None else row_of.get(value, UNKNOWN_ROW) for value in asked]
    column = pa.chunked_array([asked[:3], asked[3:]], kind)
    for few, alone in WAYS:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("passerelle.id_map._SEARCH_COST", few)
            patched.setattr("passerelle.id_map._MIN_VECTORISED", alone)
            assert id_map.rows(column).tolist() == expected, (few, alone)
