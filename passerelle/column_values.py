"""Columns of any type as text, integers or numbers, with the values that make no sense marked instead of
raised.

Shape legend: N rows.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import BoolArray, Float64Array, Int64Array
from passerelle.column_types import MAX_EXACT_FLOAT, is_bytes, is_list, is_text, number_texts
from passerelle.errors import UserError

_INTEGER = r"^-?[0-9]{1,18}$"
_LONG_INTEGER = r"^-?[0-9]{1,38}$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$"


def to_numpy_bool(mask: pa.Array) -> BoolArray:
    """Returns a boolean column as numpy; null counts as false."""
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), dtype=bool)


def as_text(values: pa.Array, *, trim: bool) -> pa.Array:
    """Returns a column as Arrow strings: whole numbers without a fraction, dates
    and the rest in their usual notation.

    Args:
        values: of a type that `normalize` returns.

    Raises:
        UserError: the type has no text (lists, structs, bytes), or a float beyond 2^53 stands
            for a whole number; told without the column's name.
    """
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        return number_texts(values)
    # Bytes that are text have been made text before: those that are left are none, though they may be UTF-8.
    texts = None if is_bytes(values.type) else _cast_to_text(values)
    if texts is None:
        raise UserError(f"holds {values.type}, which is not text")
    return pc.utf8_trim_whitespace(texts) if trim else texts


def _cast_to_text(values: pa.Array) -> pa.Array | None:
    """Returns a column as Arrow strings; None where its type has no text."""
    try:
        return values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def category_text(value: Any) -> str:
    """Returns a plain value as `as_text` gives it in a column: values of categorical columns are texts.

    >>> category_text("F"), category_text(1999), category_text(10.0), category_text(True)
    ('F', '1999', '10', 'true')

    Raises:
        TypeError: it is neither text, nor a number, nor true or false.
        UserError: a whole float is beyond 2^53.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(as_text(pa.array([value]), trim=False)[0])
    raise TypeError(f"{value!r} is no category")


def read_missing(values: pa.Array, null_values: tuple[str, ...]) -> pa.Array:
    """Returns a column with null instead of what stands for a missing value, in lists too.

    Args:
        values: of a type that `normalize` returns.
        null_values: texts; those that are numbers stand for numbers too.
    """
    if is_list(values.type):
        lists = values if not values.offset else pa.concat_arrays([values])
        present = read_missing(lists.values, null_values)
        return pa.LargeListArray.from_arrays(lists.offsets, present, mask=lists.is_null())
    missing: list[Any]
    if is_text(values.type):
        missing = list(null_values)
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        missing = _numbers_of(null_values, values.type)
    else:
        return values
    if not missing:
        return values
    return pc.if_else(
        pc.is_in(values, value_set=pa.array(missing, values.type)), pa.scalar(None, values.type), values
    )


def _numbers_of(null_values: tuple[str, ...], column_type: pa.DataType) -> list[float]:
    """Returns the values of a numeric type that some of the texts stand for."""
    texts = pa.array(null_values, pa.string())
    numbers_N, bad_N = parse_numbers(texts) if pa.types.is_floating(column_type) else parse_int64(texts)
    found: list[float] = [value for value in numbers_N[~bad_N].tolist() if value == value]
    return [value for value in found if value >= 0] if pa.types.is_uint64(column_type) else found


def parse_int64(values: pa.Array) -> tuple[Int64Array, BoolArray]:
    """Returns the integers of a column, and which values are not integers of 64 bits
    (read as 0); nulls are marked too.
    """
    if pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type):
        integers, good = values.cast(pa.int64()), values.is_valid()
    elif pa.types.is_floating(values.type):
        good = pc.and_(pc.equal(values, pc.floor(values)), pc.less_equal(pc.abs(values), MAX_EXACT_FLOAT))
        integers = pc.if_else(good, values, 0.0).cast(pa.int64())
    else:
        texts = as_text(values, trim=True)
        good = pc.match_substring_regex(texts, _INTEGER)
        if pc.all(good, skip_nulls=False, min_count=0).as_py():
            integers = texts.cast(pa.int64())
        else:
            decimals = pc.if_else(pc.match_substring_regex(texts, _LONG_INTEGER), texts, None).cast(
                pa.decimal128(38, 0)
            )
            good = pc.and_(pc.greater_equal(decimals, -(2**63)), pc.less_equal(decimals, 2**63 - 1))
            integers = pc.if_else(good, decimals, None).cast(pa.int64())
    return np.asarray(pc.fill_null(integers, 0), dtype=np.int64), ~to_numpy_bool(good)


def parse_numbers(values: pa.Array) -> tuple[Float64Array, BoolArray]:
    """Returns float64 of a column (null and NaN are NaN), and which values are
    present but not finite numbers.
    """
    if is_text(values.type):
        texts = as_text(values, trim=True)
        good = pc.match_substring_regex(texts, _NUMBER)
        numbers = pc.if_else(good, texts, None).cast(pa.float64())
        bad_N = values.is_valid().to_numpy(zero_copy_only=False) & ~to_numpy_bool(good)
    else:
        try:
            numbers = (
                values.cast(pa.int8()).cast(pa.float64())
                if pa.types.is_boolean(values.type)
                else values.cast(pa.float64(), safe=False)
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(f"holds {values.type}, which is not numbers") from None
        bad_N = np.zeros(len(values), dtype=bool)
    numbers_N = np.array(pc.fill_null(numbers, np.nan), dtype=np.float64)
    infinite_N = np.isinf(numbers_N)
    numbers_N[infinite_N] = np.nan
    return numbers_N, bad_N | infinite_N
