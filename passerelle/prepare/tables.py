"""The tables of users and items: one row for each id with events, with features of a file or of the events.

Shape legend: T rows of a table file, N entities (users or items), K kept events, C columns of flags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passerelle.arrays import Int64Array, IntArray
from passerelle.column_values import as_text, parse_int64
from passerelle.errors import UserError
from passerelle.id_map import check_ids
from passerelle.prepare.config import EntityConfig
from passerelle.prepare.conversions import make_feature
from passerelle.prepare.events import Encoded
from passerelle.prepare.feature_config import FeatureConfig
from passerelle.prepare.readers import OnBadLine, read_batches
from passerelle.prepare.row_counts import RowCounts, first_example
from passerelle.progress import Progress

_MAX_COLUMN_BYTES = 2**31 - 1


@dataclass(frozen=True)
class EntityTable:
    """Users or items with their features."""

    table: pa.Table
    """The id first, then the features, in the order of the ids."""
    missing: dict[str, int]
    """Ids without a value, by feature."""
    without_row: int
    """Ids that have events but no row in the files; 0 without files."""
    repeated_rows: int
    """Rows of the files that repeat an id; the first one counts."""


@dataclass(frozen=True)
class EntityEvents:
    """The kept events by entity, in the order of user, then time, with the columns of features."""

    rows_K: IntArray
    """Row of each event's entity."""
    num_entities: int
    timestamps_ms_K: Int64Array
    positions_K: Int64Array
    """Position of each event in the log, in file order."""
    columns: dict[str, Encoded]

    def pick(self, feature: FeatureConfig) -> pa.Array:
        """Returns one value for each entity, as text; null where no event has one."""
        assert feature.column is not None
        encoded = self.columns[feature.column]
        codes_K = encoded.codes_E[self.positions_K].astype(np.int64)
        known = np.flatnonzero(codes_K >= 0)
        rows, codes = self.rows_K[known], codes_K[known]
        if feature.from_events == "last":
            order = np.lexsort((self.positions_K[known], self.timestamps_ms_K[known]))
        else:
            # Of equally frequent values the one met first has the smallest code, so it is put last.
            pairs, counts = np.unique(rows * np.int64(len(encoded.values) + 1) + codes, return_counts=True)
            rows, codes = np.divmod(pairs, len(encoded.values) + 1)
            order = np.lexsort((-codes, counts))
        chosen_N = np.full(self.num_entities, -1, dtype=np.int64)
        # numpy keeps the last of several values for one index.
        chosen_N[rows[order]] = codes[order]
        return encoded.values.take(pa.array(chosen_N, mask=chosen_N < 0))


@dataclass(frozen=True)
class Entities:
    """Users or items, and what their features are made from."""

    name: str
    """Name of the id column, `item_id` or `user_id`."""
    ids: pa.Array
    """Distinct ids, in row order."""
    config: EntityConfig
    files: Sequence[Path]
    """Tables of the entities; without them, every feature comes from the events."""
    source: Path
    """Folder of the event files, for messages."""
    events: EntityEvents

    @property
    def plural(self) -> str:
        """`items` or `users`, for messages."""
        return f"{self.name.removesuffix('_id')}s"


def build_table(entities: Entities, row_counts: RowCounts, progress: Progress) -> EntityTable:
    """Make the features of entities from their files and events.

    Raises:
        UserError: a file is damaged or lacks a column; a value cannot be
            understood and bad rows stop the work.
    """
    made: dict[str, pa.Array] = {}
    without_row = repeated_rows = 0
    if entities.files:
        rows = _read_rows(entities, row_counts, progress)
        made = {key: _of_files(entities, key, rows, row_counts) for key in _features_of_files(entities)}
        without_row, repeated_rows = rows.positions.null_count, rows.repeated
    for key, feature in entities.config.features.items():
        if feature.from_events:
            made[key] = _make(entities, key, entities.source, [entities.events.pick(feature)], row_counts)
    features = {key: made[key] for key in entities.config.features}
    row_counts.stop_if_bad()
    return EntityTable(
        table=pa.table({entities.name: entities.ids, **features}),
        missing={f"{entities.plural}.{key}": values.null_count for key, values in features.items()},
        without_row=without_row,
        repeated_rows=repeated_rows,
    )


def _features_of_files(entities: Entities) -> list[str]:
    return [key for key, feature in entities.config.features.items() if not feature.from_events]


def _make(
    entities: Entities, key: str, where: Path, columns: Sequence[pa.Array], row_counts: RowCounts
) -> pa.Array:
    """Returns the values of a feature, and names it where they cannot be made."""
    feature = entities.config.features[key]
    try:
        return make_feature(where, f"{entities.plural}.{key}", feature, columns, row_counts)
    except UserError as error:
        of_column = f", column {feature.column!r}" if feature.column else ""
        raise UserError(f"{where}: feature {key}{of_column}: {error}") from None


def _of_files(entities: Entities, key: str, rows: "_TableRows", row_counts: RowCounts) -> pa.Array:
    """Returns the values of a feature, one for each entity; null where the files have no row of it.

    Each piece of a file is converted before they are put together, as columns may change their type between.
    """
    names = entities.config.features[key].columns()
    pieces = [
        _make(entities, key, path, [piece.column(name) for name in names], row_counts)
        for path, piece in rows.pieces
    ]
    if not pieces:
        empty = [pa.array([], pa.string()) for _ in names]
        pieces = [_make(entities, key, entities.files[0], empty, row_counts)]
    num_bytes = sum(piece.nbytes for piece in pieces)
    if num_bytes > _MAX_COLUMN_BYTES and not pa.types.is_large_list(pieces[0].type):
        raise UserError(
            f"{entities.files[0]}: feature {key}: {num_bytes / 2**30:.1f} GiB of values, "
            "and a column holds 2: shorten them, or leave the feature out"
        )
    return pa.chunked_array(pieces).combine_chunks().take(rows.order)


def table_ids(
    name: str, config: EntityConfig, id_type: pa.DataType, path: Path, row_counts: RowCounts
) -> pa.Array:
    """Returns the ids of one file of entities.

    Raises:
        UserError: as for `build_table`; or there is no row, a row has no id, or two have the same.
    """
    assert config.id is not None
    found: list[pa.Array] = []
    rows_before = 0
    for batch in read_batches(path, config, [config.id], on_bad_line=_bad_lines(row_counts, path)):
        found.append(_ids(path, config.id, batch.column(config.id), id_type, rows_before, row_counts))
        rows_before += batch.num_rows
    row_counts.stop_if_bad()
    ids = pa.chunked_array(found, id_type).combine_chunks()
    if not len(ids):
        raise UserError(f"{path}: there is no row in it")
    check_ids(ids, f"{name} (column {config.id!r})", str(path))
    return ids


def _bad_lines(row_counts: RowCounts, path: Path) -> OnBadLine:
    return lambda what, example: row_counts.bad(path, what, 1, example)


@dataclass(frozen=True)
class _TableRows:
    """The first row of each entity in its files."""

    pieces: list[tuple[Path, pa.RecordBatch]]
    """Those rows in the order of the files, each piece with its file."""
    positions: pa.Array
    """Position of the row of each entity among the rows of all files; null where there is none."""
    order: pa.Array
    """Position of the row of each entity among those of `pieces`; null where there is none."""
    repeated: int
    """Rows of an id that has one already."""


def _read_rows(entities: Entities, row_counts: RowCounts, progress: Progress) -> _TableRows:
    """Read the columns that features need."""
    config, files, ids = entities.config, entities.files, entities.ids
    assert config.id is not None
    columns = [config.features[key].columns() for key in _features_of_files(entities)]
    required = [config.id, *(name for names in columns for name in names)]
    batches: list[tuple[Path, pa.RecordBatch]] = []
    keys: list[pa.Array] = []
    for done, path in enumerate(files):
        progress(f"read {entities.plural} (files)", done, len(files))
        rows_before = 0
        for batch in read_batches(path, config, required, on_bad_line=_bad_lines(row_counts, path)):
            batches.append((path, batch))
            keys.append(_ids(path, config.id, batch.column(config.id), ids.type, rows_before, row_counts))
            rows_before += batch.num_rows
    progress(f"read {entities.plural} (files)", len(files), len(files))
    row_counts.stop_if_bad()
    table_ids_T = pa.chunked_array(keys, ids.type).combine_chunks()
    positions = pc.index_in(ids, value_set=table_ids_T)
    known = table_ids_T.drop_null()
    wanted = np.sort(positions.drop_null().to_numpy())
    ends = np.cumsum([batch.num_rows for _, batch in batches])
    pieces = []
    for (path, batch), end in zip(batches, ends, strict=True):
        low, high = np.searchsorted(wanted, [end - batch.num_rows, end])
        if high > low:
            pieces.append((path, batch.take(pa.array(wanted[low:high] - (end - batch.num_rows)))))
    order_N = np.searchsorted(wanted, pc.fill_null(positions, 0).to_numpy())
    order = pa.array(order_N, mask=positions.is_null().to_numpy(zero_copy_only=False))
    return _TableRows(pieces, positions, order, len(known) - len(known.unique()))


def _ids(
    path: Path, column: str, values: pa.Array, id_type: pa.DataType, rows_before: int, row_counts: RowCounts
) -> pa.Array:
    """Returns the ids of a table file in the events' type; a row without one is null and joins nothing."""
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
        row_counts.bad(
            path,
            f"ids that are no integers of 64 bits (column {column!r})",
            int((bad_T & ~missing_T).sum()),
            example,
        )
    return pa.array(integers_T, mask=bad_T | missing_T)
