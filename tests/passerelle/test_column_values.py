"""Texts and columns as integers, numbers and milliseconds, against Python's own parsers."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.column_values import as_text, parse_int64, parse_numbers, read_missing
from passerelle.errors import UserError
from passerelle.prepare.timestamps import format_regex, parse_timestamps_ms

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def milliseconds(time: dt.datetime) -> int:
    return (time - EPOCH) // dt.timedelta(milliseconds=1)


def ms_of(
    values: pa.Array | list[str], unit: str = "iso", text_format: str | None = None
) -> list[int | None]:
    """Milliseconds, None where the value makes no sense."""
    array = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    found, bad = parse_timestamps_ms(array, unit, text_format)  # type: ignore[arg-type]
    assert found[bad].tolist() == [0] * int(bad.sum())
    return [None if wrong else int(value) for value, wrong in zip(found, bad, strict=True)]


# Integers


@given(
    st.lists(
        st.one_of(
            st.integers(-(2**70), 2**70).map(str),
            st.sampled_from(["", "1.5", "x", "0x10", "+5", " 7 ", "1_0", "-", "９"]),
        ),
        min_size=1,
    )
)
def test_int64_of_texts(texts: list[str]) -> None:
    def expected(text: str) -> int | None:
        if (
            text.strip().removeprefix("-").isascii()
            and text.strip().removeprefix("-").isdigit()
            and -(2**63) <= int(text) < 2**63
        ):
            return int(text)
        return None

    integers, bad = parse_int64(pa.array(texts))
    assert [None if wrong else int(value) for value, wrong in zip(integers, bad, strict=True)] == [
        expected(text) for text in texts
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, -3], pa.int32()), [1, None, -3]),
        (pa.array([2**63 - 1, 2**63], pa.uint64()), [2**63 - 1, None]),
        (
            pa.array([13085.0, 1.5, float("nan"), float("inf"), None, 2.0**60]),
            [13085, None, None, None, None, None],
        ),
        (pa.array(["7", "8"]).dictionary_encode(), [7, 8]),
        (pa.array([Decimal("12"), Decimal("13")], pa.decimal128(10, 0)), [12, 13]),
    ],
)
def test_int64_of_columns(values: pa.Array, expected: list[int | None]) -> None:
    integers, bad = parse_int64(values)
    assert [None if wrong else int(value) for value, wrong in zip(integers, bad, strict=True)] == expected


# Numbers


def test_numbers_of_texts() -> None:
    texts = ["1", " -2.5 ", ".5", "5.", "1e3", "1E-2", "+4", None, "nan", "inf", "1,5", "0x1", "1e9999", ""]
    numbers, bad = parse_numbers(pa.array(texts))
    expected = [1, -2.5, 0.5, 5, 1000, 0.01, 4, *[np.nan] * 7]
    np.testing.assert_array_equal(numbers, expected)
    assert bad.tolist() == [False] * 8 + [True] * 6


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_are_exact(values: list[float]) -> None:
    for array in (pa.array(values), pa.array([repr(value) for value in values])):
        numbers, bad = parse_numbers(array)
        assert numbers.tolist() == values
        assert not bad.any()


def test_numbers_of_columns() -> None:
    assert parse_numbers(pa.array([True, False, None]))[0][:2].tolist() == [1.0, 0.0]
    numbers, bad = parse_numbers(pa.array([1.0, float("nan"), float("inf"), None]))
    np.testing.assert_array_equal(numbers, [1.0, np.nan, np.nan, np.nan])
    assert bad.tolist() == [False, False, True, False]
    with pytest.raises(UserError, match=r"list<.*not numbers"):
        parse_numbers(pa.array([[1.0]]))


def test_texts() -> None:
    assert as_text(pa.array([1, None]), trim=False).to_pylist() == ["1", None]
    assert as_text(pa.array([" é ", "b"]), trim=True).to_pylist() == ["é", "b"]
    assert read_missing(pa.array(["", "NA", "x"]), ("", "NA")).to_pylist() == [None, None, "x"]
    with pytest.raises(UserError, match="not text"):
        as_text(pa.array([[1]]), trim=False)
    with pytest.raises(UserError, match="not text"):
        as_text(pa.array([b"\xff"]), trim=False)


# Times


@pytest.mark.parametrize(
    ("unit", "texts", "expected"),
    [
        ("s", ["978300760", "0", "-1"], [978300760000, 0, -1000]),
        ("ms", ["978300760123", "-1"], [978300760123, -1]),
        ("us", ["978300760123999", "-1"], [978300760123, -1]),  # rounded down, before 1970 too
        ("s", ["1.001", "1.0009", "-0.5", "1e3", "978300760.123"], [1001, 1000, -500, 1000000, 978300760123]),
        (
            "s",
            ["1600000000000", "12", "abc"],
            [None, 12000, None],
        ),  # milliseconds read as seconds: year 52670
        ("s", ["999999999999999999", "9223372036854775807", "9223372036854775808"], [None, None, None]),
        ("us", ["1e300", "nan", "1"], [None, None, 0]),
        ("iso", ["20210101", "2021-13-01", "2021-02-29", "", "yesterday"], [None] * 5),
    ],
)
def test_timestamps(unit: str, texts: list[str], expected: list[int | None]) -> None:
    assert ms_of(texts, unit) == expected


datetimes = st.datetimes(
    dt.datetime(1, 1, 2),
    dt.datetime(9999, 12, 30),
    timezones=st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=-5, minutes=-30))]),
)


@given(
    st.lists(
        st.tuples(
            datetimes,
            st.sampled_from("T "),
            st.sampled_from(["minutes", "seconds", "milliseconds", "microseconds"]),
        ),
        min_size=1,
    )
)
@settings(deadline=None)
def test_iso_text_is_read_as_python_reads_it(cases: list[tuple[dt.datetime, str, str]]) -> None:
    texts = [time.isoformat(sep=separator, timespec=precision) for time, separator, precision in cases]
    read = [dt.datetime.fromisoformat(text) for text in texts]
    expected = [milliseconds(time if time.tzinfo else time.replace(tzinfo=dt.UTC)) for time in read]
    assert ms_of(texts) == expected
    assert ms_of([*texts, "nonsense"]) == [*expected, None]  # one bad value takes the slow road for all


@given(st.lists(st.tuples(st.integers(1, 9999), st.integers(0, 14), st.integers(0, 33)), min_size=1))
def test_days_that_do_not_exist_are_refused(days: list[tuple[int, int, int]]) -> None:
    def expected(year: int, month: int, day: int) -> int | None:
        try:
            return milliseconds(dt.datetime(year, month, day, tzinfo=dt.UTC))
        except ValueError:
            return None

    assert ms_of([f"{year:04}-{month:02}-{day:02}" for year, month, day in days]) == [
        expected(*day) for day in days
    ]
    assert ms_of([f"{day}/{month}/{year:04}" for year, month, day in days], text_format="%d/%m/%Y") == [
        expected(*day) for day in days
    ]


def test_fractions_of_nine_digits_and_offsets() -> None:
    assert ms_of(
        [
            "1970-01-01T00:00:00.123456789",
            "1970-01-01T01:00+01:00",
            "1970-01-01 00:00:00-0030",
            "1969-12-31 23:59:59.9999Z",
        ]
    ) == [
        123,
        0,
        1_800_000,
        -1,
    ]


def test_own_formats() -> None:
    assert ms_of(
        ["10/Oct/2000:13:55:36 -0700", "10/Okt/2000:13:55:36 -0700"], text_format="%d/%b/%Y:%H:%M:%S %z"
    ) == [971211336000, None]
    assert ms_of(["1/2/2011 8:05", "31/02/2011 8:05", "1/2/2011 8:05 p"], text_format="%d/%m/%Y %H:%M") == [
        1296547500000,
        None,
        None,
    ]
    assert ms_of(["1970-01-01 00:00:00.5"], text_format="%Y-%m-%d %H:%M:%S.%f") == [500]


@pytest.mark.parametrize("text_format", ["%Y-%m", "%Y-%m-%d %Y", "%d %q %Y", "%Y-%m-%b-%d"])
def test_formats_that_say_too_little_or_too_much(text_format: str) -> None:
    with pytest.raises(ValueError, match=r"%"):
        format_regex(text_format)


@pytest.mark.parametrize(
    ("column_type", "unit_ms"),
    [
        (pa.timestamp("s"), 1000),
        (pa.timestamp("ms"), 1),
        (pa.timestamp("us", "Europe/Paris"), 1e-3),
        (pa.timestamp("ns"), 1e-6),
    ],
)
def test_columns_of_dates(column_type: pa.DataType, unit_ms: float) -> None:
    assert ms_of(pa.array([1_000_000_000, -1], column_type)) == [
        int(1_000_000_000 * unit_ms),
        int(np.floor(-unit_ms)),
    ]
    with pytest.raises(UserError, match='write timestamp_unit = "iso"'):
        ms_of(pa.array([1], column_type), "s")


def test_columns_of_days_and_far_dates() -> None:
    assert ms_of(pa.array([dt.date(1970, 1, 2)])) == [86_400_000]
    assert ms_of(pa.array([2**62, 0], pa.timestamp("s"))) == [None, 0]
