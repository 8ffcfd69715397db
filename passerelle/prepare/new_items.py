"""The items of one file, as a description of logs has them: for those that come after a dataset was made."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from passerelle.errors import UserError
from passerelle.ids import ITEM_ID
from passerelle.prepare.config import ID_TYPES, PrepareConfig
from passerelle.prepare.row_counts import RowCounts
from passerelle.prepare.tables import Entities, EntityEvents, build_table, table_ids
from passerelle.progress import Progress, silent


def read_new_items(config: PrepareConfig, path: Path, progress: Progress = silent) -> pa.Table:
    """Returns `item_id` and the item features of a file like `items.files`; features from events are null.

    Raises:
        UserError: the description names no files of items; the file is missing, empty, damaged or lacks a
            column; a row has no id, or another's; or a value cannot be understood and bad rows stop the work.
    """
    if not config.items.files:
        raise UserError(
            f"{config.name}: the description has no table of items (items.files), so it does not say how to "
            f"read {path}"
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    row_counts = RowCounts(config.on_bad_rows)
    features = {name: feature for name, feature in config.items.features.items() if not feature.from_events}
    entity = config.items.model_copy(update={"features": features})
    ids = table_ids(ITEM_ID, entity, ID_TYPES[config.item_id_type], path, row_counts)
    empty = np.zeros(0, dtype=np.int64)
    events = EntityEvents(empty, len(ids), empty, empty, {})
    entities = Entities(ITEM_ID, ids, entity, [path], path.parent, events)
    table = build_table(entities, row_counts, progress).table
    for name in config.items.features.keys() - features.keys():
        table = table.append_column(name, pa.nulls(len(ids)))
    return table
