"""The encoding of user and context features that a request gives."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from passerelle.column_values import category_text, parse_int64, parse_numbers
from passerelle.config import plain_value
from passerelle.dataset import LATITUDE, LONGITUDE, FeatureKind
from passerelle.encoding import EncodedRows, FeatureEncoding
from passerelle.errors import UserError

_TYPES: dict[FeatureKind, pa.DataType] = {
    "categorical": pa.string(),
    "multi_categorical": pa.list_(pa.string()),
    "numeric": pa.float64(),
    "vector": pa.list_(pa.float32()),
    "timestamp": pa.int64(),
    "place": pa.struct([(LATITUDE, pa.float64()), (LONGITUDE, pa.float64())]),
}
"""Arrow type of the column of each kind of feature."""
_WANTED = {
    "categorical": "a text",
    "multi_categorical": "a list of texts",
    "numeric": "a number",
    "vector": "a list of {width} numbers",
    "timestamp": "a whole number of milliseconds",
    "place": "an object of latitude and longitude",
}
"""The values of each kind of feature in a request, for messages."""


def encode_values(encoding: FeatureEncoding, values: Mapping[str, Any], where: str) -> EncodedRows:
    """Returns the codes and numbers of one row.

    Args:
        values: plain values by column; others are missing.
        where: origin of the values, for the message.

    Raises:
        UserError: no column has a name, or a value has another type.
    """
    names = [column.name for column in encoding.columns]
    if unknown := sorted(set(values) - set(names)):
        raise UserError(
            f"{where}: the model does not read {', '.join(unknown)}; it reads {', '.join(names) or 'none'}"
        )
    table = {}
    for column in encoding.columns:
        value = values.get(column.name)
        try:
            table[column.name] = pa.array([_of_kind(column.kind, value)], _TYPES[column.kind])
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, UnicodeError, UserError):
            wanted = _WANTED[column.kind].format(width=column.width)
            raise UserError(
                f"{where}.{column.name}: {value!r:.80} is not {wanted}, as a feature of kind {column.kind} is"
            ) from None
    try:
        return encoding.encode(pa.table(table) if table else pa.table({"": [None]}))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _of_kind(kind: FeatureKind, value: Any) -> Any:
    """Returns a value as the kind of its feature has it; a text is read as `prepare` reads a text of a file.

    Raises:
        TypeError: it is no value of the kind.
    """
    if value is None or kind == "place":
        return value
    if kind == "categorical":
        return category_text(value)
    if kind in ("multi_categorical", "vector"):
        values = plain_value(value) if isinstance(value, str) else value
        if not isinstance(values, list):
            raise TypeError(kind)
        return [category_text(each) for each in values] if kind == "multi_categorical" else values
    if isinstance(value, str):
        numbers, bad = (
            parse_numbers(pa.array([value])) if kind == "numeric" else parse_int64(pa.array([value]))
        )
        if bad[0]:
            raise TypeError(kind)
        return numbers[0].item()
    return float(value) if kind == "numeric" and isinstance(value, bool) else value
