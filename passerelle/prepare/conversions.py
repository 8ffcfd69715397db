"""Conversion of table columns of any type to the features that a description declares.

Shape legend: N rows, C columns of flags, T values of all rows, W width of a vector.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import BoolArray, Float64Array, IntArray
from passerelle.column_types import is_list, is_text
from passerelle.column_values import as_text, parse_numbers, to_numpy_bool
from passerelle.dataset import LATITUDE, LONGITUDE
from passerelle.errors import UserError
from passerelle.prepare.feature_config import FeatureConfig
from passerelle.prepare.row_counts import RowCounts
from passerelle.prepare.timestamps import parse_timestamps_ms


def make_feature(
    where: Path, key: str, feature: FeatureConfig, columns: Sequence[pa.Array], row_counts: RowCounts
) -> pa.Array:
    """Returns one value for each row, null where it is missing.

    Args:
        where: file of the columns, for messages.
        key: name of the feature, for messages.
        columns: one for each name of `feature.columns()`.

    Raises:
        UserError: a column has a type that the kind cannot be made of, or a flag is neither 0 nor 1.
    """

    def bad(what: str, bad_N: BoolArray, values: pa.Array) -> None:
        if bad_N.any():
            row_counts.bad_values[key] = row_counts.bad_values.get(key, 0) + int(bad_N.sum())
            example = repr(str(values[int(np.argmax(bad_N))])[:80])
            row_counts.bad(
                where,
                f"{what} in column {', '.join(map(repr, feature.columns()))} for {key}",
                int(bad_N.sum()),
                example,
            )

    if feature.flags:
        return _of_flags(feature.flags, columns)
    if feature.kind == "place":
        latitude_N, longitude_N = (_numbers(values, bad) for values in columns)
        outside_N = (np.abs(latitude_N) > 90) | (np.abs(longitude_N) > 180)
        both = pc.binary_join_element_wise(*(as_text(values, trim=True) for values in columns), ", ")
        bad("no place on Earth (latitude -90 to 90, longitude -180 to 180)", outside_N, both)
        missing_N = outside_N | np.isnan(latitude_N) | np.isnan(longitude_N)
        return pa.StructArray.from_arrays(
            [pa.array(latitude_N), pa.array(longitude_N)], [LATITUDE, LONGITUDE], mask=pa.array(missing_N)
        )
    (values,) = columns
    if feature.kind == "vector":
        assert feature.width is not None
        vectors, bad_N = _vectors(values, feature.width, feature.separator)
        bad(f"no vector of {feature.width} numbers", bad_N, values)
        return vectors
    if feature.kind == "multi_categorical" and is_list(values.type):
        return _split(values)
    if feature.extract is not None:
        values = pc.struct_field(pc.extract_regex(as_text(values, trim=True), feature.extract), "value")
    if feature.kind == "numeric":
        numbers_N = _numbers(values, bad)
        return pa.array(numbers_N, mask=np.isnan(numbers_N))
    if feature.kind == "timestamp":
        known = to_numpy_bool(values.is_valid())
        ms_T, bad_T = parse_timestamps_ms(
            values.filter(pa.array(known)), feature.timestamp_unit, feature.timestamp_format
        )
        ms_N, bad_N = np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
        ms_N[known], bad_N[known] = ms_T, bad_T
        bad("no timestamp", bad_N, values)
        return pa.array(ms_N, mask=bad_N | ~known)
    texts = as_text(values, trim=True)
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    if feature.kind != "multi_categorical":
        return texts
    return _split(
        pc.split_pattern(texts, feature.separator)
        if feature.separator
        else _lists(np.asarray(texts.is_valid(), int), texts.drop_null())
    )


def _numbers(values: pa.Array, bad: Callable[[str, BoolArray, pa.Array], None]) -> Float64Array:
    numbers_N, bad_N = parse_numbers(values)
    bad("no number", bad_N, values)
    # Networks compute in float32, and the spread of such numbers is beyond float64.
    beyond_N = np.abs(numbers_N) > np.finfo(np.float32).max
    bad("a number beyond 32 bits", beyond_N, values)
    numbers_N[beyond_N] = np.nan
    return numbers_N


def _vectors(values: pa.Array, width: int, separator: str | None) -> tuple[pa.Array, BoolArray]:
    """Returns lists of float32, null where one is missing or bad, and which are bad: of
    another width, or with other values.
    """
    if pa.types.is_null(values.type):
        values = values.cast(pa.large_list(pa.float64()))
    if is_text(values.type):
        if separator is None:
            raise UserError("holds text: say in separator what stands between two numbers")
        values = pc.split_pattern(pc.utf8_trim_whitespace(values), separator)
    if not is_list(values.type):
        raise UserError(f"holds {values.type}, which is not vectors")
    present_N = to_numpy_bool(values.is_valid())
    lengths_N = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    fits_N = present_N & (lengths_N == width)
    numbers_T, _ = parse_numbers(values.filter(pa.array(fits_N)).flatten())
    vectors_NW = numbers_T.reshape(-1, width)
    good_N = fits_N.copy()
    good_N[fits_N] = np.isfinite(vectors_NW).all(axis=1)
    flat = pa.array(vectors_NW[good_N[fits_N]].astype(np.float32).ravel())
    offsets = np.concatenate([[0], np.cumsum(np.where(good_N, width, 0))]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~good_N)), present_N & ~good_N


def _of_flags(names: Sequence[str], columns: Sequence[pa.Array]) -> pa.Array:
    on_NC = np.stack([_flag(name, values) for name, values in zip(names, columns, strict=True)], axis=1)
    rows, columns_T = np.nonzero(on_NC)
    return _lists(np.bincount(rows, minlength=len(on_NC)), pa.array(names).take(pa.array(columns_T)))


def _flag(name: str, values: pa.Array) -> BoolArray:
    texts = pc.utf8_lower(as_text(values, trim=True))
    unclear = pc.and_kleene(
        texts.is_valid(),
        pc.invert(pc.is_in(texts, value_set=pa.array(["0", "1", "true", "false", "0.0", "1.0"]))),
    )
    if pc.any(unclear).as_py():
        raise UserError(f"column {name!r}: a flag is 0 or 1, got {texts.filter(unclear)[0].as_py()!r}")
    return to_numpy_bool(pc.is_in(texts, value_set=pa.array(["1", "true", "1.0"])))


def _lists(lengths_N: IntArray, values: pa.Array) -> pa.ListArray:
    """Returns lists of the given lengths; an empty one is null: no value is known."""
    offsets = np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(lengths_N == 0))


def _split(lists: pa.Array) -> pa.ListArray:
    """Returns lists of trimmed texts without the empty ones."""
    owners = pc.list_parent_indices(lists).to_numpy()
    texts = as_text(pc.list_flatten(lists), trim=True)
    good = to_numpy_bool(pc.not_equal(texts, ""))
    return _lists(np.bincount(owners[good], minlength=len(lists)), texts.filter(pa.array(good)))
