"""Columns of any Arrow type as one of a few types, before any other code looks at their values.

| What a column holds | Type |
|---|---|
| text, dictionaries of text, UUIDs, bytes that are UTF-8 text | `string` |
| whole numbers | `int64`; `uint64` where a value needs it |
| other numbers | `float64`; decimals as they are, because ids need their digits |
| truth values | `bool` |
| times | `timestamp` as it is; dates as `date32` |
| lists of any layout | `large_list` of one of these |
| nothing | `null` |

Everything else (structs, maps, times of day, other bytes) is left as it is, for who reads it to refuse.
Shape legend: N rows.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.errors import UserError

MAX_EXACT_FLOAT = 2.0**53
"""Above, float64 does not tell neighbouring whole numbers apart, so that two ids could have become one."""
_UUID_BYTES = 16
_CONTROL_CHARACTERS = r"[\x00-\x08\x0B\x0C\x0E-\x1F]"


def normalize(values: pa.Array) -> pa.Array:
    """Returns a column as one of the types above, with the same rows and nulls."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return _uuid_texts(values.storage)
        return normalize(values.storage)
    if pa.types.is_dictionary(kind):
        return normalize(values.cast(kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return normalize(pc.run_end_decode(values))
    if is_text(kind):
        return values.cast(pa.string())
    if is_bytes(kind):
        return _texts_of_bytes(values)
    if pa.types.is_integer(kind):
        return _integers(values)
    if pa.types.is_floating(kind):
        return values.cast(pa.float64())
    if pa.types.is_date(kind):
        return values.cast(pa.date32())
    if is_list(kind):
        return _lists(values)
    return values


def is_text(column_type: pa.DataType) -> bool:
    """Returns whether a column holds text, in any layout."""
    return bool(
        pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_string_view(column_type)
    )


def is_list(column_type: pa.DataType) -> bool:
    """Returns whether a column holds lists, in any layout."""
    return bool(
        pa.types.is_list(column_type)
        or pa.types.is_large_list(column_type)
        or pa.types.is_fixed_size_list(column_type)
        or pa.types.is_list_view(column_type)
        or pa.types.is_large_list_view(column_type)
    )


def number_texts(values: pa.Array) -> pa.Array:
    """Returns numbers as the text of an id or a category: without a fraction where they are whole.

    Args:
        values: float64 or decimals.

    Raises:
        UserError: a whole float is beyond 2^53, told without the column's name.
    """
    if pa.types.is_decimal(values.type):
        return pc.replace_substring_regex(values.cast(pa.string()), r"\.0*$", "")
    numbers = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    is_whole = pc.equal(numbers, pc.floor(numbers))
    is_whole = pc.and_(is_whole, pc.is_finite(numbers))
    is_beyond = pc.and_(is_whole, pc.greater(pc.abs(numbers), MAX_EXACT_FLOAT))
    if pc.any(is_beyond).as_py():
        example = numbers.filter(is_beyond)[0].as_py()
        raise UserError(
            f"holds {example:.0f} as a floating-point number, which above 2^53 does not tell neighbours "
            "apart: write whole numbers or text"
        )
    whole = pc.if_else(is_whole, numbers, pa.scalar(None, pa.float64())).cast(pa.int64())
    return pc.coalesce(whole.cast(pa.string()), numbers.cast(pa.string()))


def _integers(values: pa.Array) -> pa.Array:
    if pa.types.is_uint64(values.type) and (pc.max(values).as_py() or 0) > np.iinfo(np.int64).max:
        return values
    return values.cast(pa.int64())


def is_bytes(kind: pa.DataType) -> bool:
    """Returns whether a column holds bytes, in any layout."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _texts_of_bytes(values: pa.Array) -> pa.Array:
    """Returns bytes as text, where all of them are text; else the column as it is."""
    try:
        # A fixed width has no cast to text of its own.
        texts = values.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return values
    return values if pc.any(pc.match_substring_regex(texts, _CONTROL_CHARACTERS)).as_py() else texts


def _uuid_texts(values: pa.FixedSizeBinaryArray) -> pa.Array:
    """Returns 16 bytes a row as the canonical text of a UUID, in lower case."""
    zero = pa.scalar(bytes(_UUID_BYTES), values.type)
    filled = pc.fill_null(values, zero)
    raw_N16 = np.frombuffer(filled.buffers()[1], dtype=np.uint8)[
        filled.offset * _UUID_BYTES : (filled.offset + len(filled)) * _UUID_BYTES
    ].reshape(-1, _UUID_BYTES)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    hex_N32 = np.stack([digits[raw_N16 >> 4], digits[raw_N16 & 15]], axis=2).reshape(-1, 2 * _UUID_BYTES)
    texts_N36 = np.insert(hex_N32, [8, 12, 16, 20], ord("-"), axis=1)
    offsets: npt.NDArray[np.int32] = np.arange(len(values) + 1, dtype=np.int32) * texts_N36.shape[1]
    texts = pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(texts_N36.tobytes()))
    return pc.if_else(values.is_valid(), texts, pa.scalar(None, pa.string()))


def _lists(values: pa.Array) -> pa.Array:
    # Lengths instead of offsets: those of a slice start anywhere, those of a view in any order.
    lengths_N = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(
        pa.array(offsets), normalize(pc.list_flatten(values)), mask=pc.is_null(values)
    )
