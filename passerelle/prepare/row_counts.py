"""Counts of the rows of a log: read, dropped by reason, bad, with the first
example of each kind of bad row.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from passerelle.arrays import BoolArray, Int64Array
from passerelle.errors import UserError


@dataclass
class _Bad:
    count: int
    example: str


@dataclass
class RowCounts:
    """Counts of the rows of a log."""

    on_bad_rows: Literal["error", "drop"]
    rows_read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Event rows by reason, in the order in which the reasons are checked."""
    bad_values: dict[str, int] = field(default_factory=dict)
    """Values of features that could not be parsed and became missing, by feature."""
    _bad: dict[tuple[Path, str], _Bad] = field(default_factory=dict)

    def drop(self, reason: str, count: int) -> None:
        """Count events dropped for a reason; a count of 0 adds the reason to the report."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def bad(self, path: Path, what: str, count: int, example: str) -> None:
        """Count values of a file that cannot be parsed.

        Args:
            what: what is wrong with them.
            example: the first one, with its row.
        """
        seen = self._bad.setdefault((path, what), _Bad(0, example))
        seen.count += count

    def stop_if_bad(self) -> None:
        """Check the counts when a group of files has been read.

        Raises:
            UserError: there were bad values, and they are not to be dropped.
        """
        if not self._bad or self.on_bad_rows == "drop":
            return
        (path, what), bad = next(iter(self._bad.items()))
        others = len(self._bad) - 1
        more = f"; and {others} other kind{'s' if others > 1 else ''} of bad row" if others else ""
        raise UserError(
            f"{path}: {what} in {bad.count} rows, first {bad.example}{more}: "
            'mend them, or set on_bad_rows = "drop"'
        )


def first_example(bad_N: BoolArray, rows_N: Int64Array, values: object) -> str:
    """Returns the first marked value of a column, such as `row 17: 'abc'`."""
    first = int(np.argmax(bad_N))
    return f"row {rows_N[first]}: {str(values[first])!r}"  # type: ignore[index]
