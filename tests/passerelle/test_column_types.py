"""Columns of every Arrow type as one of a few."""

import datetime as dt
import uuid
from decimal import Decimal

import pyarrow as pa
import pytest

from passerelle.column_types import normalize, number_texts
from passerelle.errors import UserError

UUIDS = [uuid.UUID(int=1), uuid.UUID("d23f0824-128b-4f33-8c5c-7fd0a6a3a450")]
UUID_STORAGE = pa.array([each.bytes for each in UUIDS] + [None], pa.binary(16))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", None], pa.large_string()), pa.array(["a", None])),
        (pa.array(["a", None], pa.string_view()), pa.array(["a", None])),
        (pa.array([b"a", None]), pa.array(["a", None])),
        (pa.array([b"ab", None], pa.binary(2)), pa.array(["ab", None])),
        (pa.array([b"a", None], pa.binary_view()), pa.array(["a", None])),
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.array(["a", None, "a"])),
        # A null among the values of a dictionary, and one among its codes.
        (
            pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None])),
            pa.array(["a", None, None]),
        ),
        (pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array([7, 9])), pa.array([9, 7])),
        (
            pa.RunEndEncodedArray.from_arrays(pa.array([2, 3]), pa.array(["x", None])),
            pa.array(["x", "x", None]),
        ),
        (pa.ExtensionArray.from_storage(pa.uuid(), UUID_STORAGE), pa.array([*map(str, UUIDS), None])),
        (pa.ExtensionArray.from_storage(pa.uuid(), UUID_STORAGE)[1:], pa.array([str(UUIDS[1]), None])),
        (pa.array([1, None], pa.int8()), pa.array([1, None])),
        (pa.array([1, 2**63 - 1], pa.uint64()), pa.array([1, 2**63 - 1])),
        (pa.array([1, 2**64 - 1], pa.uint64()), pa.array([1, 2**64 - 1], pa.uint64())),
        (pa.array([1.5, None], pa.float16()), pa.array([1.5, None])),
        (pa.array([None, None]), pa.array([None, None])),
        (pa.array([dt.date(2020, 1, 1)], pa.date64()), pa.array([dt.date(2020, 1, 1)])),
        (pa.array([Decimal("1.50")]), pa.array([Decimal("1.50")])),
    ],
    ids=lambda array: str(array.type)[:40],
)
def test_types_of_one_value(values: pa.Array, expected: pa.Array) -> None:
    assert normalize(values).equals(expected)


LISTS = [["a", "b"], None, [], ["c"]]


@pytest.mark.parametrize(
    "list_type",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_view(pa.string()),
        pa.large_list_view(pa.string_view()),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=str,
)
def test_lists_of_any_layout(list_type: pa.DataType) -> None:
    values = pa.array(LISTS, list_type)
    for sliced, expected in ((values, LISTS), (values[1:], LISTS[1:]), (values[3:], LISTS[3:])):
        assert normalize(sliced).equals(pa.array(expected, pa.large_list(pa.string())))


def test_lists_of_a_fixed_size() -> None:
    values = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2))
    assert normalize(values).equals(pa.array([[1, 2], None, [3, 4]], pa.large_list(pa.int64())))
    assert normalize(values[1:]).equals(pa.array([None, [3, 4]], pa.large_list(pa.int64())))


@pytest.mark.parametrize(
    "values",
    [
        UUID_STORAGE,
        pa.array([b"\xff\xfe"]),
        pa.array([b"\x00\x01"]),
        pa.array([{"a": 1}]),
        pa.array([dt.time(1)]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda array: str(array.type)[:40],
)
def test_other_types_stay(values: pa.Array) -> None:
    """Raw bytes, even those that happen to be ASCII control characters, are no text."""
    assert normalize(values).equals(values)


def test_numbers_as_ids() -> None:
    floats = pa.array([4006381333931.0, 2.0**53, -3.0, 1.5, -0.0, None, float("nan"), float("inf")])
    assert number_texts(floats).to_pylist() == [
        *("4006381333931", "9007199254740992", "-3", "1.5", "0", None, None, "inf"),
    ]
    decimals = pa.array([Decimal("12.00"), Decimal("12.50"), None])
    assert number_texts(decimals).to_pylist() == ["12", "12.50", None]
    with pytest.raises(UserError, match=r"holds 9007199254740994 as a floating-point number, which above"):
        number_texts(pa.array([1.0, 2.0**53 + 2]))
