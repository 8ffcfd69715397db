"""Ids to rows and back, for strings of any script and integers of 64 bits."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, IdMap
from passerelle.ids import FIRST_ITEM_ROW, MASK_ROW, PADDING_ROW

int64s = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"))


def test_special_rows_come_before_the_items() -> None:
    assert len({PADDING_ROW, MASK_ROW} | {UNKNOWN_ROW}) == 3
    assert max(PADDING_ROW, MASK_ROW) < FIRST_ITEM_ROW


@given(
    st.one_of(
        st.tuples(st.just(pa.int64()), st.lists(int64s, unique=True)),
        st.tuples(st.just(pa.string()), st.lists(texts, unique=True)),
    ),
    st.data(),
)
def test_both_directions(case: tuple[pa.DataType, list[str | int]], data: st.DataObject) -> None:
    id_type, ids = case
    id_map = IdMap(pa.array(ids, id_type), first_row=FIRST_ITEM_ROW, name="item_id")
    expected = {value: row for row, value in enumerate(ids, start=FIRST_ITEM_ROW)}
    asked = ids + data.draw(st.lists(int64s if pa.types.is_int64(id_type) else texts))
    assert len(id_map) == len(ids)
    assert id_map.rows(asked).tolist() == [expected.get(value, UNKNOWN_ROW) for value in asked]
    assert [id_map.row(value) for value in asked] == [expected.get(value, UNKNOWN_ROW) for value in asked]
    assert id_map.ids(id_map.rows(ids)) == ids


def test_rows_of_arrow_columns() -> None:
    id_map = IdMap(pa.chunked_array([[30, 10], [20]], pa.int64()), first_row=0, name="user_id")
    assert id_map.rows(pa.chunked_array([[10], [7, 20]], pa.int32())).tolist() == [1, UNKNOWN_ROW, 2]
    assert id_map.rows(pa.array([30, None], pa.int64())).tolist() == [0, UNKNOWN_ROW]
    assert id_map.rows([]).tolist() == []


@pytest.mark.parametrize("ids", [pa.array([1, 2, 1]), pa.array(["a", "b", "b"])])
def test_ids_that_repeat(ids: pa.Array) -> None:
    with pytest.raises(UserError, match=r"^item_id: ids repeat"):
        IdMap(ids, first_row=2, name="item_id")


@pytest.mark.parametrize("ids", [pa.array([1.0]), pa.array([1], pa.int32()), pa.array([b"a"])])
def test_ids_of_other_types(ids: pa.Array) -> None:
    with pytest.raises(UserError, match=r"user_id: ids are .*, only string and int64 are possible"):
        IdMap(ids, first_row=0, name="user_id")


def test_parse() -> None:
    numbers, words = (IdMap(pa.array(ids), first_row=2, name="item_id") for ids in ([42], ["42"]))
    assert (numbers.parse("42"), numbers.parse(42), words.parse(42)) == (42, 42, "42")
    with pytest.raises(UserError, match=r"item_id 'x': this catalogue's ids are integers"):
        numbers.parse("x")
    with pytest.raises(UserError, match=r"does not fit in 64 bits"):
        numbers.parse(str(2**63))


@pytest.mark.parametrize(
    "text", ["10_01", "１００１", "+42", " 42", "42\n", "4.2", "٤٢", "²", "", "-", "--1", "0x2a", "9" * 5000]
)
def test_only_digits_parse_as_integer_ids(text: str) -> None:
    """One id has one name: what is blocked, erased or limited under it cannot be had under another."""
    with pytest.raises(UserError, match="this catalogue's ids are integers"):
        IdMap(pa.array([42]), first_row=2, name="item_id").parse(text)


@given(int64s)
def test_every_number_is_its_own_text(number: int) -> None:
    assert IdMap(pa.array([42]), first_row=2, name="item_id").parse(str(number)) == number


def test_a_row_outside_the_map_is_an_assertion() -> None:
    with pytest.raises(AssertionError, match="row outside the map"):
        IdMap(pa.array([5]), first_row=2, name="item_id").ids(pa.array([PADDING_ROW]).to_numpy())
