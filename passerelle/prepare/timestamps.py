"""Times of any notation as int64 milliseconds since 1970, exactly, with the rows that make no sense marked.

Everything is rounded down to the millisecond.
Shape legend: N rows.
"""

import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import BoolArray, Int64Array
from passerelle.calendar_time import FIRST_TIMESTAMP_MS, LAST_TIMESTAMP_MS
from passerelle.column_values import as_text, parse_int64, parse_numbers
from passerelle.errors import UserError

TimestampUnit = Literal["s", "ms", "us", "iso"]

_US_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DIRECTIVES = {
    "Y": r"(?P<Y>\d{4})",
    "m": r"(?P<m>\d{1,2})",
    "d": r"(?P<d>\d{1,2})",
    "H": r"(?P<H>\d{1,2})",
    "M": r"(?P<M>\d{1,2})",
    "S": r"(?P<S>\d{1,2})",
    "f": r"(?P<f>\d{1,9})",
    "z": r"(?P<z>Z|[+-]\d{2}(?::?\d{2})?)",
    "b": r"(?P<b>[A-Za-z]{3})",
    "%": "%",
}
_ISO = (
    r"^(?P<Y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})"
    r"(?:[ "
    r"T](?P<H>\d{2})(?::?(?P<M>\d{2})(?::?(?P<S>\d{2})(?:\.(?P<f>\d{1,9}))?)?)?)?(?P<z>Z|[+-]\d{2}(?::?\d{2})?)?$"
)


def format_regex(text: str) -> str:
    """Returns the regular expression of a `timestamp_format`.

    Raises:
        ValueError: a directive is unknown or repeated, or the date is incomplete.
    """
    parts = re.split(r"%(.)", text)
    directives = parts[1::2]
    unknown = [name for name in directives if name not in _DIRECTIVES]
    if unknown:
        raise ValueError(f"%{unknown[0]}: known are {' '.join('%' + name for name in _DIRECTIVES)}")
    named = [name for name in directives if name != "%"]
    if len(set(named)) < len(named) or not {"Y", "d"} <= set(named) or ("m" in named) == ("b" in named):
        raise ValueError("give %Y, %d and one of %m and %b, each directive once")
    return (
        "^"
        + "".join(
            _DIRECTIVES[part] if position % 2 else re.escape(part) for position, part in enumerate(parts)
        )
        + "$"
    )


def check_timestamp_format(unit: TimestampUnit, text_format: str | None) -> None:
    """Check that a format goes with the unit, and is one.

    Raises:
        ValueError: one of these.
    """
    if text_format is not None:
        if unit != "iso":
            raise ValueError('timestamp_format goes with timestamp_unit = "iso"')
        format_regex(text_format)


def parse_timestamps_ms(
    values: pa.Array, unit: TimestampUnit, text_format: str | None
) -> tuple[Int64Array, BoolArray]:
    """Returns the milliseconds of each value, and which values cannot be parsed (their milliseconds are 0).

    Args:
        values: without nulls.

    Raises:
        UserError: a date column where numbers are announced, told without its name.
    """
    if pa.types.is_temporal(values.type):
        if unit != "iso" or text_format or pa.types.is_time(values.type) or pa.types.is_duration(values.type):
            raise UserError(
                f'holds {values.type}: write timestamp_unit = "iso" without a format for a column of dates'
            )
        ms_N, bad_N = _of_dates(values)
    elif unit == "iso":
        ms_N, bad_N = _of_text(as_text(values, trim=True), text_format)
    else:
        ms_N, bad_N = _of_numbers(values, _US_PER_UNIT[unit])
    bad_N = bad_N | (ms_N < FIRST_TIMESTAMP_MS) | (ms_N > LAST_TIMESTAMP_MS)
    return np.where(bad_N, 0, ms_N), bad_N


def _of_dates(values: pa.Array) -> tuple[Int64Array, BoolArray]:
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    counts_N = np.asarray(values.cast(pa.int64()), dtype=np.int64)
    unit = values.type.unit
    limit = np.iinfo(np.int64).max // 1000
    beyond_N = np.abs(counts_N) > limit if unit == "s" else np.zeros(len(counts_N), dtype=bool)
    if unit == "s":
        return np.where(beyond_N, 0, counts_N) * 1000, beyond_N
    return counts_N // {"ms": 1, "us": 1_000, "ns": 1_000_000}[unit], beyond_N


def _of_numbers(values: pa.Array, us_per_unit: int) -> tuple[Int64Array, BoolArray]:
    whole_N, no_integer_N = parse_int64(values)
    if not no_integer_N.any():
        bound = 1_000 * max(-FIRST_TIMESTAMP_MS, LAST_TIMESTAMP_MS) // us_per_unit
        bad_N = np.abs(whole_N) > bound
        whole_N = np.where(bad_N, 0, whole_N)
        return (whole_N * 1000 if us_per_unit == 1_000_000 else whole_N * us_per_unit // 1000), bad_N
    # float64 holds microseconds exactly up to the year 2255; rounding to them undoes what 0.1 s lost in
    # binary
    number_N, bad_N = parse_numbers(values)
    us_N = number_N * us_per_unit
    bad_N = bad_N | ~(np.abs(us_N) < 1_000 * LAST_TIMESTAMP_MS)
    return np.rint(np.where(bad_N, 0, us_N)).astype(np.int64) // 1000, bad_N


def _of_text(texts: pa.Array, text_format: str | None) -> tuple[Int64Array, BoolArray]:
    if text_format is None:
        try:
            us_N = np.asarray(texts.cast(pa.timestamp("us")).cast(pa.int64()), dtype=np.int64)
            return us_N // 1000, np.zeros(len(texts), dtype=bool)
        except pa.ArrowInvalid:
            pass  # offsets, nanoseconds or nonsense: read it piece by piece
    fields = pc.extract_regex(texts, _ISO if text_format is None else format_regex(text_format))
    return _of_fields(fields)


def _of_fields(fields: pa.StructArray) -> tuple[Int64Array, BoolArray]:
    bad_N = np.asarray(fields.is_null().to_numpy(zero_copy_only=False))
    names = {field.name for field in fields.type}

    def text(name: str) -> pa.Array:
        return (
            pc.fill_null(pc.struct_field(fields, name), "") if name in names else pa.repeat("", len(fields))
        )

    def number(name: str, absent: int, digits: pa.Array | None = None) -> Int64Array:
        values = text(name) if digits is None else digits
        return np.asarray(
            pc.if_else(pc.equal(values, ""), str(absent), values).cast(pa.int64()), dtype=np.int64
        )

    year_N, day_N, hour_N, minute_N, second_N = (
        number(name, absent) for name, absent in zip("YdHMS", (1970, 1, 0, 0, 0), strict=True)
    )
    if "b" in names:
        index_N = pc.index_in(pc.utf8_lower(text("b")), value_set=pa.array(_MONTHS))
        month_N = np.asarray(pc.fill_null(index_N, -1), dtype=np.int64) + 1
    else:
        month_N = number("m", 1)
    fraction = pc.utf8_slice_codeunits(pc.binary_join_element_wise(text("f"), "000", ""), 0, 3)
    zone = text("z")
    sign_N = np.where(np.asarray(pc.starts_with(zone, "-").to_numpy(zero_copy_only=False)), -1, 1)
    zone_digits = pc.replace_substring_regex(zone, r"[^0-9]", "")
    offset_minutes_N = sign_N * (
        60 * number("z", 0, pc.utf8_slice_codeunits(zone_digits, 0, 2))
        + number("z", 0, pc.utf8_slice_codeunits(zone_digits, 2, 4))
    )
    bad_N = bad_N | (month_N < 1) | (month_N > 12)
    months_N = ((year_N - 1970) * 12 + np.where(bad_N, 1, month_N) - 1).astype("datetime64[M]")
    first_day_N, next_month_N = (
        each.astype("datetime64[D]").astype(np.int64) for each in (months_N, months_N + 1)
    )
    bad_N |= (
        (year_N < 1)
        | (day_N < 1)
        | (day_N > next_month_N - first_day_N)
        | (hour_N > 23)
        | (minute_N > 59)
        | (second_N > 59)
    )
    minutes_N = ((first_day_N + day_N - 1) * 24 + hour_N) * 60 + minute_N - offset_minutes_N
    return (minutes_N * 60 + second_N) * 1000 + number("f", 0, fraction), bad_N
