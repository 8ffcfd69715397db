"""The tables of users and items: one row an id that has events, with the features of a file or of the events themselves.

Shape legend: T rows of a table file, N entities (users or items), K kept events, C columns of flags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import Int64Array, IntArray
from passerelle.errors import UserError
from passerelle.id_map import check_ids
from passerelle.prepare.config import EntityConfig
from passerelle.prepare.conversions import make_feature
from passerelle.prepare.events import Encoded
from passerelle.prepare.feature_config import FeatureConfig
from passerelle.prepare.readers import OnBadLine, read_batches
from passerelle.prepare.row_counts import RowCounts, first_example
from passerelle.prepare.values import as_text, parse_int64
from passerelle.progress import Progress


@dataclass(frozen=True)
class EntityTable:
    """Users or items with their features."""

    table: pa.Table
    """The id first, then the features, in the ids' order."""
    missing: dict[str, int]
    """Ids without a value, by feature."""
    without_row: int
    """Ids that have events but no row in the files; 0 without files."""
    repeated_rows: int
    """Rows of the files whose id was there before; the first one counts."""


@dataclass(frozen=True)
class EntityEvents:
    """The events kept, seen from the entities: which one each event belongs to, in (user, time) order, with feature columns."""

    rows_K: IntArray
    """Place of each event's entity."""
    num_entities: int
    timestamps_ms_K: Int64Array
    places_K: Int64Array
    """Place of each event in the log, in file order."""
    columns: dict[str, Encoded]

    def pick(self, feature: FeatureConfig) -> pa.Array:
        """One value an entity, as text; null where no event has one."""
        assert feature.column is not None
        encoded = self.columns[feature.column]
        codes_K = encoded.codes_E[self.places_K].astype(np.int64)
        known = np.flatnonzero(codes_K >= 0)
        rows, codes = self.rows_K[known], codes_K[known]
        if feature.from_events == "last":
            order = np.lexsort((self.places_K[known], self.timestamps_ms_K[known]))
        else:
            # of equally frequent values the one met first has the smallest code, so it is put last
            pairs, counts = np.unique(rows * np.int64(len(encoded.values) + 1) + codes, return_counts=True)
            rows, codes = np.divmod(pairs, len(encoded.values) + 1)
            order = np.lexsort((-codes, counts))
        chosen_N = np.full(self.num_entities, -1, dtype=np.int64)
        chosen_N[rows[order]] = codes[order]  # numpy keeps the last of several values for one place
        return encoded.values.take(pa.array(chosen_N, mask=chosen_N < 0))


def build_table(
    name: str,
    ids: pa.Array,
    config: EntityConfig,
    files: Sequence[Path],
    source: Path,
    *,
    events: EntityEvents,
    tally: RowCounts,
    progress: Progress,
) -> EntityTable:
    """Features of entities from their files and events.

    Args:
        name: name of the id column, `item_id` or `user_id`.
        ids: distinct ids of the entities, in row order.
        files: of the entities; without them, every feature comes from the events.
        source: folder of the events' files, for what is said of them.

    Raises:
        UserError: a file is damaged or lacks a column; a value cannot be understood and bad rows stop the work.
    """
    columns: dict[str, pa.Array] = {}
    without_row = repeated_rows = 0
    if files:
        raw, without_row, repeated_rows = _read_rows(name, ids, config, files, tally, progress)
        columns |= {key: raw.column(key).combine_chunks() for key in raw.column_names}
    features = {}
    for key, feature in config.features.items():
        where = files[0] if files and not feature.from_events else source
        given = (
            [events.pick(feature)]
            if feature.from_events
            else [columns[column] for column in feature.columns()]
        )
        try:
            features[key] = make_feature(where, f"{name.removesuffix('_id')}s.{key}", feature, given, tally)
        except UserError as error:
            of_column = f", column {feature.column!r}" if feature.column else ""
            raise UserError(f"{where}: feature {key}{of_column}: {error}") from None
    tally.stop_if_bad()
    return EntityTable(
        table=pa.table({name: ids, **features}),
        missing={f"{name.removesuffix('_id')}s.{key}": values.null_count for key, values in features.items()},
        without_row=without_row,
        repeated_rows=repeated_rows,
    )


def table_ids(
    name: str, config: EntityConfig, id_type: pa.DataType, path: Path, tally: RowCounts
) -> pa.Array:
    """The ids of one file of entities.

    Raises:
        UserError: as for `build_table`; or there is no row, a row has no id, or two have the same.
    """
    assert config.id is not None
    found: list[pa.Array] = []
    rows_before = 0
    for batch in read_batches(path, config, [config.id], on_bad_line=_bad_lines(tally, path)):
        found.append(_ids(path, config.id, batch.column(config.id), id_type, rows_before, tally))
        rows_before += batch.num_rows
    tally.stop_if_bad()
    ids = pa.chunked_array(found, id_type).combine_chunks()
    if not len(ids):
        raise UserError(f"{path}: there is no row in it")
    check_ids(ids, f"{name} (column {config.id!r})", str(path))
    return ids


def _bad_lines(tally: RowCounts, path: Path) -> OnBadLine:
    return lambda example: tally.bad(path, "a wrong number of values", 1, example)


def _read_rows(
    name: str,
    ids: pa.Array,
    config: EntityConfig,
    files: Sequence[Path],
    tally: RowCounts,
    progress: Progress,
) -> tuple[pa.Table, int, int]:
    """(needed columns of the files, one row an id with nulls where there is none; ids without a row; repeated rows)."""
    assert config.id is not None
    required = [
        config.id,
        *(
            column
            for feature in config.features.values()
            if not feature.from_events
            for column in feature.columns()
        ),
    ]
    batches: list[pa.RecordBatch] = []
    keys: list[pa.Array] = []
    for done, path in enumerate(files):
        progress(f"read {name.removesuffix('_id')}s (files)", done, len(files))
        rows_before = 0
        for batch in read_batches(path, config, required, on_bad_line=_bad_lines(tally, path)):
            batches.append(batch)
            keys.append(_ids(path, config.id, batch.column(config.id), ids.type, rows_before, tally))
            rows_before += batch.num_rows
    progress(f"read {name.removesuffix('_id')}s (files)", len(files), len(files))
    tally.stop_if_bad()
    table_ids_T = pa.chunked_array(keys, ids.type).combine_chunks()
    places = pc.index_in(ids, value_set=table_ids_T)
    known = table_ids_T.drop_null()
    return pa.Table.from_batches(batches).take(places), places.null_count, len(known) - len(known.unique())


def _ids(
    path: Path, column: str, values: pa.Array, id_type: pa.DataType, rows_before: int, tally: RowCounts
) -> pa.Array:
    """Ids of a table file in the events' type; a row without one is null and joins nothing."""
    try:
        if pa.types.is_string(id_type):
            return as_text(values, trim=False)
        integers_T, bad_T = parse_int64(values)
    except UserError as error:
        raise UserError(f"{path}: column {column!r} {error}") from None
    missing_T = ~values.is_valid().to_numpy(zero_copy_only=False)
    if (bad_T & ~missing_T).any():
        rows_T = np.arange(rows_before + 1, rows_before + len(values) + 1)
        example = first_example(bad_T & ~missing_T, rows_T, values)
        tally.bad(
            path,
            f"ids that are no integers of 64 bits (column {column!r})",
            int((bad_T & ~missing_T).sum()),
            example,
        )
    return pa.array(integers_T, mask=bad_T | missing_T)
