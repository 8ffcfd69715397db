"""Features that a request gives of a user or of its circumstances, as a network takes them."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

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
"""Of a column, as datasets have them."""
_WANTED = {
    "categorical": "a text",
    "multi_categorical": "a list of texts",
    "numeric": "a number",
    "vector": "a list of {width} numbers",
    "timestamp": "a whole number of milliseconds",
    "place": "an object of latitude and longitude",
}
"""The same, in a request."""


def encode_values(encoding: FeatureEncoding, values: Mapping[str, Any], where: str) -> EncodedRows:
    """Codes and numbers of one row, given as plain values by name; what is not given is missing.

    Raises:
        UserError: a name that is none of the columns', or a value of another type; `where` says what is at fault.
    """
    names = [column.name for column in encoding.columns]
    if strangers := sorted(set(values) - set(names)):
        raise UserError(
            f"{where}: the model does not read {', '.join(strangers)}; it reads {', '.join(names) or 'none'}"
        )
    table = {}
    for column in encoding.columns:
        value = values.get(column.name)
        try:
            if column.kind in ("multi_categorical", "vector") and not isinstance(value, list | None):
                raise TypeError
            if column.kind == "multi_categorical" and value is not None:
                value = [_category(each) for each in value]
            table[column.name] = pa.array(
                [_category(value) if column.kind == "categorical" else value], _TYPES[column.kind]
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, UnicodeError):
            wanted = _WANTED[column.kind].format(width=column.width)
            raise UserError(
                f"{where}.{column.name}: {value!r:.80} is not {wanted}, as a feature of kind {column.kind} is"
            ) from None
    try:
        return encoding.encode(pa.table(table) if table else pa.table({"": [None]}))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _category(value: Any) -> Any:
    """Whole numbers are the texts that they were in the logs."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
