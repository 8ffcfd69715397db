"""From raw logs to a dataset: read, filter, sort, number, report, write.

Shape legend: E events read, K events kept, U users, U1 = U + 1, I items.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from passerelle.arrays import Int32Array, Int64Array, UInt8Array
from passerelle.dataset import Dataset, DatasetContents, FeatureColumn, write_dataset
from passerelle.errors import UserError
from passerelle.files import refuse_existing
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID, MAX_ITEM_ROW, USER_ID
from passerelle.manifest import MANIFEST_NAME
from passerelle.prepare.config import EntityConfig, PrepareConfig
from passerelle.prepare.contexts import make_contexts
from passerelle.prepare.events import Encoded, EventLog, read_events
from passerelle.prepare.feature_config import FeatureConfig
from passerelle.prepare.filters import select_events
from passerelle.prepare.quality import QualityReport, distinct_pairs, iso
from passerelle.prepare.raw_files import raw_digests
from passerelle.prepare.row_counts import RowCounts
from passerelle.prepare.sources import resolve_files
from passerelle.prepare.tables import Entities, EntityEvents, EntityTable, build_table
from passerelle.progress import Progress, silent


@dataclass(frozen=True)
class _Kept:
    """The events that are kept, in the order of user, then time, with users and items numbered densely."""

    positions_K: Int64Array
    """Position of each event in the log."""
    timestamps_ms_K: Int64Array
    event_types_K: UInt8Array
    user_rows_K: Int32Array
    item_positions_K: Int32Array
    user_ids: pa.Array
    item_ids: pa.Array
    offsets_U1: Int64Array


def prepare(
    config: PrepareConfig, source: Path, out: Path, *, overwrite: bool = False, progress: Progress = silent
) -> Dataset:
    """Make a dataset from the files in `source`.

    Users and items are numbered in ascending order of their ids; a user's events are
    sorted by time, ties in file order.

    Raises:
        UserError: a file or a column is missing, a row cannot be understood, nothing is left after the
            filters, or `out` exists.
    """
    started = time.perf_counter()
    refuse_existing(out, overwrite=overwrite)
    if out.exists() and not (out / MANIFEST_NAME).is_file():
        raise UserError(
            f"{out}: --overwrite replaces only a directory made by passerelle, "
            f"and this one has no {MANIFEST_NAME}"
        )
    with raw_digests(config, source) as digests:
        row_counts = RowCounts(config.on_bad_rows)
        log = read_events(config, source, row_counts, progress)
        progress("sort and filter", 0, 1)
        kept = _kept(log, config, row_counts)
        progress("sort and filter", 1, 1)
        users = build_table(
            _entities(USER_ID, config.users, kept.user_ids, kept.user_rows_K, log, kept, source),
            row_counts,
            progress,
        )
        items = build_table(
            _entities(ITEM_ID, config.items, kept.item_ids, kept.item_positions_K, log, kept, source),
            row_counts,
            progress,
        )
        contexts = make_contexts(config.context, source, log.columns, kept.positions_K, row_counts)
        raw_files = digests.result()
    report = _report(config, kept, users, items, row_counts, time.perf_counter() - started)
    progress("write", 0, 1)
    dataset = write_dataset(
        out,
        DatasetContents(
            item_rows_E=kept.item_positions_K.astype(np.int64) + FIRST_ITEM_ROW,
            timestamps_ms_E=kept.timestamps_ms_K,
            event_types_E=kept.event_types_K,
            weights_E=log.weights_E[kept.positions_K],
            offsets_U1=kept.offsets_U1,
            users=users.table,
            items=items.table,
            contexts=contexts,
            description={
                "name": config.name,
                "event_types": config.event_types(),
                "user_features": _feature_columns(config.users.features),
                "item_features": _feature_columns(config.items.features),
                "context_features": _feature_columns(config.context.features),
                "title": config.title,
                "config": config.model_dump(mode="json"),
                "quality": report.model_dump(mode="json"),
                "raw_files": raw_files,
            },
        ),
        overwrite=overwrite,
    )
    progress("write", 1, 1)
    return dataset


def _kept(log: EventLog, config: PrepareConfig, row_counts: RowCounts) -> _Kept:
    positions_K, dropped = select_events(
        log.users.codes_E, log.items.codes_E, log.timestamps_ms_E, log.event_types_E, config.filters
    )
    for reason, count in dropped.items():
        row_counts.drop(reason, count)
    if not len(positions_K):
        reasons = ", ".join(f"{reason} {count}" for reason, count in row_counts.dropped.items() if count)
        raise UserError(
            f"{config.name}: no event is left of {row_counts.rows_read} rows read; "
            f"dropped: {reasons or 'nothing'}"
        )
    user_rows_K, user_ids = _dense(log.users, positions_K)
    item_positions_K, item_ids = _dense(log.items, positions_K)
    if len(item_ids) + FIRST_ITEM_ROW > MAX_ITEM_ROW:
        raise UserError(
            f"{config.name}: {len(item_ids)} items, at most {MAX_ITEM_ROW - FIRST_ITEM_ROW} are possible"
        )
    return _Kept(
        positions_K=positions_K,
        timestamps_ms_K=log.timestamps_ms_E[positions_K],
        event_types_K=log.event_types_E[positions_K],
        user_rows_K=user_rows_K,
        item_positions_K=item_positions_K,
        user_ids=user_ids,
        item_ids=item_ids,
        offsets_U1=np.concatenate([[0], np.cumsum(np.bincount(user_rows_K))]).astype(np.int64),
    )


def _dense(encoded: Encoded, positions_K: Int64Array) -> tuple[Int32Array, pa.Array]:
    """Returns the codes of the kept events, without gaps, and the ids that are left."""
    codes_K = encoded.codes_E[positions_K]
    used = np.flatnonzero(np.bincount(codes_K, minlength=len(encoded.values)))
    renumbered = np.empty(len(encoded.values), dtype=np.int32)
    renumbered[used] = np.arange(len(used), dtype=np.int32)
    return renumbered[codes_K], encoded.values.take(pa.array(used))


def _entities(
    name: str,
    config: EntityConfig,
    ids: pa.Array,
    rows_K: Int32Array,
    log: EventLog,
    kept: _Kept,
    source: Path,
) -> Entities:
    events = EntityEvents(rows_K, len(ids), kept.timestamps_ms_K, kept.positions_K, log.columns)
    return Entities(name, ids, config, resolve_files(source, config.files), source, events)


def _report(
    config: PrepareConfig,
    kept: _Kept,
    users: EntityTable,
    items: EntityTable,
    row_counts: RowCounts,
    seconds: float,
) -> QualityReport:
    num_users, num_items = users.table.num_rows, items.table.num_rows
    lengths_U = np.diff(kept.offsets_U1)
    tied_K = (np.diff(kept.user_rows_K) == 0) & (np.diff(kept.timestamps_ms_K) == 0)
    by_type = np.bincount(kept.event_types_K, minlength=len(config.event_types())).tolist()
    return QualityReport(
        rows_read=row_counts.rows_read,
        dropped=row_counts.dropped,
        events=len(kept.positions_K),
        users=num_users,
        items=num_items,
        events_by_type=dict(zip(config.event_types(), by_type, strict=True)),
        density=distinct_pairs(kept.user_rows_K, kept.item_positions_K, num_items) / (num_users * num_items),
        first_event=iso(int(kept.timestamps_ms_K.min())),
        last_event=iso(int(kept.timestamps_ms_K.max())),
        median_history=float(np.median(lengths_U)),
        longest_history=int(lengths_U.max()),
        tied_events=int(tied_K.sum()),
        missing_values={**users.missing, **items.missing},
        bad_values=row_counts.bad_values,
        items_without_row=items.without_row,
        users_without_row=users.without_row,
        repeated_item_rows=items.repeated_rows,
        repeated_user_rows=users.repeated_rows,
        seconds=round(seconds, 3),
    )


def _feature_columns(features: Mapping[str, FeatureConfig]) -> tuple[FeatureColumn, ...]:
    return tuple(
        FeatureColumn(
            name=name,
            kind=feature.kind,
            scaling=None if feature.scaling == "standard" else feature.scaling,
            width=feature.width,
            from_events=True if feature.from_events else None,
        )
        for name, feature in features.items()
    )
