"""The encoding of declared features as the input of networks, for training, export, serving and `add-items`.

A row becomes numbers and integer codes: indices into one table of weights that all categorical columns share.
No value of a row is an error: a value that training never saw has the code of its column's
unknown values, and is counted.
A missing value has no code, or the number 0 and a flag.

Shape legend: N rows, S code slots of a row, F numbers of a row, V values of a column, C width of a vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import Float32Array, Float64Array, Int64Array
from passerelle.calendar_time import DAY_MS
from passerelle.categories import explode
from passerelle.config import Config
from passerelle.dataset import LATITUDE, LONGITUDE, FeatureColumn, FeatureKind, Scaling
from passerelle.errors import UserError

NO_CODE = 0
MAX_NUMBER = 1000.0
"""Largest scaled number: an absurd one must not make a query infinite."""
MAX_SLOTS = 16
"""Values of a row that are encoded, of one column."""
MAX_VALUES = 100_000
"""Values of one column with a code of their own: the most frequent ones."""


@dataclass(frozen=True)
class EncodedRows:
    """The input of a network for some rows."""

    codes_NS: Int64Array
    """Indices into the table of codes; 0 where a slot is empty."""
    numbers_NF: Float32Array
    """The first number is 1; it is 0 in the row of an unknown user."""
    unknown: dict[str, int]
    """Number of values without a code of their own, by column."""


class ColumnEncoding(Config):
    """The fitted encoding of one column."""

    name: str
    kind: FeatureKind
    values: tuple[str, ...] = ()
    """Categorical: values with a code of their own, the most frequent first."""
    slots: int = 0
    """Categorical: largest number of codes of a row."""
    scaling: Scaling = "standard"
    """Numeric: whether the number is scaled (`standard`), or sign(x) * log(1 + |x|) is (`log`)."""
    center: float = 0.0
    """Numeric: the mean that is subtracted."""
    scale: float = 1.0
    """Divisor after centering: the mean square becomes 1, that of a vector's length likewise."""
    width: int = 0
    """Vector: numbers in it."""

    @property
    def num_codes(self) -> int:
        """Number of codes: the unknown one, which comes first, and one for each value."""
        return len(self.values) + 1 if self.slots else 0

    @property
    def num_numbers(self) -> int:
        """Number of numbers, of which the last is 1 where the value is missing."""
        return {"numeric": 2, "timestamp": 2, "place": 4, "vector": self.width + 1}.get(self.kind, 0)


class FeatureEncoding(Config):
    """The fitted encoding of a table of items, users or contexts."""

    columns: tuple[ColumnEncoding, ...]

    @property
    def num_slots(self) -> int:
        """S, at least 1, so that a network always has this input."""
        return max(1, sum(column.slots for column in self.columns))

    @property
    def num_codes(self) -> int:
        """Length of the table of codes, the empty one included."""
        return 1 + sum(column.num_codes for column in self.columns)

    @property
    def num_numbers(self) -> int:
        """F."""
        return 1 + sum(column.num_numbers for column in self.columns)

    def slots(self) -> dict[str, slice]:
        """Returns the slots of each categorical column: a network takes the mean of each column's codes."""
        ends = np.cumsum([column.slots for column in self.columns])
        return {
            c.name: slice(int(end) - c.slots, int(end))
            for c, end in zip(self.columns, ends, strict=True)
            if c.slots
        }

    def encode(self, table: pa.Table) -> EncodedRows:
        """Returns the codes and numbers of each row of a table.

        Raises:
            UserError: a column is missing, has another type, or holds a vector of another width.
        """
        codes_NS = np.zeros((table.num_rows, self.num_slots), dtype=np.int64)
        numbers_NF = np.ones((table.num_rows, self.num_numbers), dtype=np.float32)
        unknown: dict[str, int] = {}
        slot, code, number = 0, NO_CODE + 1, 1
        for column in self.columns:
            if column.name not in table.column_names:
                raise UserError(
                    f"column {column.name!r} is missing; there are: {', '.join(table.column_names)}"
                )
            if column.slots:
                own_NS, unknown[column.name] = _codes(table, column)
                codes_NS[:, slot : slot + column.slots] = np.where(own_NS < 0, NO_CODE, own_NS + code)
            else:
                numbers_NF[:, number : number + column.num_numbers] = _scaled(
                    _raw_numbers(table, column), column
                )
            slot, code, number = slot + column.slots, code + column.num_codes, number + column.num_numbers
        return EncodedRows(codes_NS, numbers_NF, {name: count for name, count in unknown.items() if count})


class QueryEncoding(Config):
    """Encodings of the features that the query encoder reads beside the history, if any."""

    user: FeatureEncoding = FeatureEncoding(columns=())
    context: FeatureEncoding = FeatureEncoding(columns=())
    """Encoding of the context features of a request."""

    def widths(self) -> dict[str, int]:
        """Returns the number of columns of each input of the query encoder."""
        return {
            f"{name}_{part}": width
            for name, encoding in (("user", self.user), ("context", self.context))
            for part, width in (("codes", encoding.num_slots), ("numbers", encoding.num_numbers))
        }


def fit_encoding(table: pa.Table, features: Sequence[FeatureColumn], min_count: int) -> FeatureEncoding:
    """Fit the encoding of features to the rows that training sees.

    Features of kind `text` are left out: a text encoder makes vectors of them first.

    Args:
        table: items or users; rows of training alone.
        min_count: rows that a categorical value needs for a code of its own; what is rarer teaches what
            unknown values are like.
    """
    return FeatureEncoding(
        columns=tuple(_learn(table, feature, min_count) for feature in features if feature.kind != "text")
    )


def _learn(table: pa.Table, feature: FeatureColumn, min_count: int) -> ColumnEncoding:
    if feature.kind in ("categorical", "multi_categorical"):
        counts, longest = _value_counts(table, feature.name)
        frequent = sorted((-count, value) for value, count in counts if count >= min_count)
        slots = min(MAX_SLOTS, longest)
        return ColumnEncoding(
            name=feature.name,
            kind=feature.kind,
            values=tuple(value for _, value in frequent[:MAX_VALUES]),
            slots=slots,
        )
    width = feature.width or 0
    column = ColumnEncoding(
        name=feature.name, kind=feature.kind, scaling=feature.scaling or "standard", width=width
    )
    raw_NC = _raw_numbers(table, column)
    known_NC = raw_NC[np.isfinite(raw_NC).all(axis=1)]
    if not len(known_NC) or feature.kind == "place":  # a place is a point on the unit sphere
        return column
    center = 0.0 if feature.kind == "vector" else float(known_NC.mean())
    spread = float(np.sqrt(np.mean(np.square(known_NC - center).sum(axis=1))))
    return column.model_copy(update={"center": center, "scale": spread or 1.0})


def _value_counts(table: pa.Table, name: str) -> tuple[list[tuple[str, int]], int]:
    """Returns each value with its count, and the largest number of values of a row (1 or more)."""
    column = table.column(name)
    if pa.types.is_dictionary(column.type):  # of events: a text for each would be large
        values = column.unify_dictionaries().combine_chunks()
        counts_V = np.bincount(values.indices.drop_null().to_numpy(), minlength=len(values.dictionary))
        return list(zip(values.dictionary.cast(pa.string()).to_pylist(), counts_V.tolist(), strict=True)), 1
    row_T, value_T = explode(column)
    counts = pc.value_counts(value_T.cast(pa.string()))
    value_counts = list(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))
    return value_counts, int(np.bincount(row_T).max(initial=1))


def _codes(table: pa.Table, column: ColumnEncoding) -> tuple[Int64Array, int]:
    """Returns the codes within the column [N, slots], -1 in empty slots and 0 for unknown values,
    and the number of unknown values.
    """
    values = table.column(column.name).combine_chunks()
    if pa.types.is_dictionary(values.type):
        known_V = _value_indices(values.dictionary.cast(pa.string()), column)
        index_N = values.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        code_N = np.where(index_N < 0, -1, np.append(known_V, -1)[index_N] + 1)
        return code_N[:, None], int(np.count_nonzero(code_N == 0))
    row_T, value_T = explode(values)
    lengths_N = np.bincount(row_T, minlength=len(values))
    found_T = _value_indices(value_T.cast(pa.string()), column)
    codes_NS = np.full((len(values), column.slots), -1, dtype=np.int64)
    slot_T = np.arange(len(row_T)) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
    within_T = slot_T < column.slots
    codes_NS[row_T[within_T], slot_T[within_T]] = found_T[within_T] + 1
    return codes_NS, int(np.count_nonzero(found_T < 0))


def _value_indices(texts: pa.Array, column: ColumnEncoding) -> Int64Array:
    """Returns the index of each value among those with a code of their own, -1 where it has none."""
    found = pc.index_in(texts, value_set=pa.array(column.values, pa.string()))
    return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _raw_numbers(table: pa.Table, column: ColumnEncoding) -> Float64Array:
    """Returns float64 [N, C], NaN where the value is missing."""
    values = table.column(column.name).combine_chunks()
    if column.kind == "vector":
        return _vectors(values, column)
    if column.kind == "place":
        return points(values, column.name)
    numbers_N = _floats(values, column.name)
    if column.kind == "timestamp":
        numbers_N = numbers_N / DAY_MS
    if column.scaling == "log":
        numbers_N = np.sign(numbers_N) * np.log1p(np.abs(numbers_N))
    return numbers_N[:, None]


def points(coordinates: pa.Array, name: str) -> Float64Array:
    """Returns the geographic positions of a column as points [N, 3] on the unit
    sphere, NaN where one is missing.
    """
    points_N3 = on_the_sphere(*(_floats(coordinates.field(field), name) for field in (LATITUDE, LONGITUDE)))
    return np.where(coordinates.is_valid().to_numpy(zero_copy_only=False)[:, None], points_N3, np.nan)


def on_the_sphere(latitude: npt.ArrayLike, longitude: npt.ArrayLike) -> Float64Array:
    """Returns degrees as points [..., 3] on the unit sphere."""
    north, east = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def _floats(values: pa.Array, name: str) -> Float64Array:
    """Returns a column as float64, NaN where a value is missing or infinite."""
    try:
        numbers_N = np.array(
            values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False), dtype=np.float64
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"column {name!r} holds {values.type}, not numbers") from None
    numbers_N[np.isinf(numbers_N)] = np.nan
    return numbers_N


def _vectors(values: pa.Array, column: ColumnEncoding) -> Float64Array:
    """Returns the vectors of a column; a row with a number that is not finite counts as missing."""
    if not (
        pa.types.is_list(values.type)
        or pa.types.is_large_list(values.type)
        or pa.types.is_fixed_size_list(values.type)
    ):
        raise UserError(f"column {column.name!r} holds {values.type}, not vectors of {column.width} numbers")
    valid_N = values.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(values).fill_null(column.width).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(valid_N & (lengths != column.width))
    if len(wrong):
        first = f"the first, of row {wrong[0] + 1}, has {lengths[wrong[0]]}"
        raise UserError(
            f"column {column.name!r}: {len(wrong)} vectors are not {column.width} numbers long; {first}"
        )
    vectors_NC = np.full((len(values), column.width), np.nan)
    vectors_NC[valid_N] = _floats(values.drop_null().flatten(), column.name).reshape(-1, column.width)
    vectors_NC[~np.isfinite(vectors_NC).all(axis=1)] = np.nan
    return vectors_NC


def _scaled(raw_NC: Float64Array, column: ColumnEncoding) -> Float32Array:
    """Returns [N, C + 1]: scaled numbers, 0 where they are missing, and a flag for missing."""
    missing_N1 = np.isnan(raw_NC).any(axis=1, keepdims=True)
    scaled_NC = np.clip(
        np.where(missing_N1, 0.0, (raw_NC - column.center) / column.scale), -MAX_NUMBER, MAX_NUMBER
    )
    return np.concatenate([scaled_NC, missing_N1], axis=1).astype(np.float32)
