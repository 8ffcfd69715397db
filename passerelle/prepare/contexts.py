"""Context features of events, from columns of the event files.

Shape legend: E events read, K events kept, V distinct values of a column.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from passerelle.arrays import Int64Array
from passerelle.errors import UserError
from passerelle.prepare.config import ContextConfig
from passerelle.prepare.conversions import make_feature
from passerelle.prepare.events import Encoded
from passerelle.prepare.row_counts import RowCounts


def make_contexts(
    config: ContextConfig,
    source: Path,
    columns: Mapping[str, Encoded],
    positions_K: Int64Array,
    row_counts: RowCounts,
) -> pa.Table | None:
    """Returns one row for each kept event, with categorical values as dictionaries;
    None where nothing is declared.

    A bad value is counted once.

    Args:
        columns: columns of the event files, by name.
        positions_K: position of each kept event among those read.

    Raises:
        UserError: a value cannot be parsed, unless bad rows are dropped.
    """
    if not config.features:
        return None
    table = {}
    for name, feature in config.features.items():
        (column,) = feature.columns()
        encoded = columns[column]
        try:
            values = make_feature(source, f"context.{name}", feature, [encoded.values], row_counts)
        except UserError as error:
            raise UserError(f"{source}: feature {name}, column {column!r}: {error}") from None
        if feature.kind == "categorical":
            values = values.dictionary_encode()
        codes_K = encoded.codes_E[positions_K]
        table[name] = values.take(pa.array(codes_K, mask=codes_K < 0))
    row_counts.stop_if_bad()
    return pa.table(table)
