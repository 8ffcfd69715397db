"""The data-quality report: what was read, what was dropped and why, figures of the data set."""

from datetime import UTC, datetime

import numpy as np

from passerelle.arrays import IntArray
from passerelle.config import Config


class QualityReport(Config):
    """Figures about one preparation, kept in the dataset's manifest."""

    rows_read: int
    dropped: dict[str, int]
    """Event rows by the reason they were dropped for; each row counts once, for the first reason that
    applies.
    """
    events: int
    users: int
    items: int
    events_by_type: dict[str, int]
    density: float
    """Distinct (user, item) pairs over users x items."""
    first_event: str
    """ISO 8601, UTC."""
    last_event: str
    median_history: float
    """Events of a user."""
    longest_history: int
    tied_events: int
    """Events with the timestamp of the same user's event before them: their order is the files' order."""
    missing_values: dict[str, int]
    """Users or items without a value, by feature."""
    bad_values: dict[str, int]
    """Values that could not be parsed and became missing, by feature."""
    items_without_row: int
    """Items with events that the item files do not describe."""
    users_without_row: int
    repeated_item_rows: int
    repeated_user_rows: int
    seconds: float
    """Wall time until the files were written."""


def iso(timestamp_ms: int) -> str:
    """Returns a timestamp as ISO 8601 text in UTC."""
    time = datetime.fromtimestamp(timestamp_ms // 1000, UTC).replace(microsecond=timestamp_ms % 1000 * 1000)
    return time.isoformat(timespec="milliseconds" if timestamp_ms % 1000 else "seconds")


def distinct_pairs(users_K: IntArray, items_K: IntArray, num_items: int) -> int:
    """Returns the number of distinct (user, item) pairs."""
    # np.unique hashes, which takes 10 times as long here.
    pairs_K = np.sort(users_K.astype(np.int64) * num_items + items_K)
    return int((np.diff(pairs_K) != 0).sum()) + bool(len(pairs_K))


def report_rows(report: QualityReport) -> list[tuple[str, str]]:
    """Returns lines of a name and a figure, for people; reasons and features without a count are left out."""
    count = "{:,}".format
    lines = [("rows read", count(report.rows_read))]
    lines += [
        (f"- dropped: {reason.replace('_', ' ')}", count(number))
        for reason, number in report.dropped.items()
        if number
    ]
    lines += [
        ("events", count(report.events)),
        ("users", count(report.users)),
        ("items", count(report.items)),
    ]
    if len(report.events_by_type) > 1:
        lines += [(f"- type {name}", count(number)) for name, number in report.events_by_type.items()]
    lines += [
        ("density", f"{report.density:.3%}"),
        ("first event", report.first_event),
        ("last event", report.last_event),
        ("median history", f"{report.median_history:g}"),
        ("longest history", count(report.longest_history)),
        ("events at the time of the one before", count(report.tied_events)),
    ]
    lines += [(f"missing: {name}", count(number)) for name, number in report.missing_values.items() if number]
    lines += [
        (f"not understood: {name}", count(number)) for name, number in report.bad_values.items() if number
    ]
    extra = {
        "items without a row": report.items_without_row,
        "users without a row": report.users_without_row,
        "repeated item rows": report.repeated_item_rows,
        "repeated user rows": report.repeated_user_rows,
    }
    lines += [(name, count(number)) for name, number in extra.items() if number]
    return [*lines, ("seconds", f"{report.seconds:.2f}")]
