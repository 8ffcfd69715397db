"""Columns of any type as text, integers or numbers, with the values that make no sense marked instead of
raised.

Shape legend: N rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import BoolArray, Float64Array, Int64Array
from passerelle.errors import UserError

_INTEGER = r"^-?[0-9]{1,18}$"
_LONG_INTEGER = r"^-?[0-9]{1,38}$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$"


def to_numpy_bool(mask: pa.Array) -> BoolArray:
    """Returns a boolean column as numpy; null counts as false."""
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), dtype=bool)


def is_text(column_type: pa.DataType) -> bool:
    """Returns whether a column holds text."""
    return bool(
        pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_string_view(column_type)
    )


def as_text(values: pa.Array, *, trim: bool) -> pa.Array:
    """Returns a column as Arrow strings; integers, dates and the rest in their usual notation.

    Raises:
        UserError: the type has no text (lists, structs, bytes that are not UTF-8),
            told without the column's name.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        texts = values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"holds {values.type}, which is not text") from None
    return pc.utf8_trim_whitespace(texts) if trim else texts


def empty_to_null(values: pa.Array, null_values: tuple[str, ...]) -> pa.Array:
    """Returns a column with null instead of texts that stand for a missing
    value; other types stay as they are.
    """
    if not is_text(values.type) or not null_values:
        return values
    return pc.if_else(
        pc.is_in(values, value_set=pa.array(null_values, values.type)), pa.scalar(None, values.type), values
    )


def parse_int64(values: pa.Array) -> tuple[Int64Array, BoolArray]:
    """Returns the integers of a column, and which values are not integers of 64 bits
    (read as 0); nulls are marked too.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type):
        integers, good = values.cast(pa.int64()), values.is_valid()
    elif pa.types.is_floating(values.type):
        # 2^53: above, a float64 no longer tells neighbours apart, so that two ids could have become one
        good = pc.and_(pc.equal(values, pc.floor(values)), pc.less_equal(pc.abs(values), 2.0**53))
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
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
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
