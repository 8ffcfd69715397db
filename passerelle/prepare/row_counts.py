"""What was left out and why, and the first example of each kind of bad row."""

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
    """Counts while a log is read: rows read, rows dropped by reason, values that could not be understood."""

    on_bad_rows: Literal["error", "drop"]
    rows_read: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Event rows by reason, in the order the reasons are looked at."""
    bad_values: dict[str, int] = field(default_factory=dict)
    """Values of features that became missing because they could not be understood, by feature."""
    _bad: dict[tuple[Path, str], _Bad] = field(default_factory=dict)

    def drop(self, reason: str, count: int) -> None:
        """Count events left out for a reason; 0 keeps the reason's place in the report."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def bad(self, path: Path, what: str, count: int, example: str) -> None:
        """Note values of a file that cannot be understood: `what` is wrong with them and where the first one stands."""
        seen = self._bad.setdefault((path, what), _Bad(0, example))
        seen.count += count

    def stop_if_bad(self) -> None:
        """Called when a group of files is read through.

        Raises:
            UserError: bad values were seen and they stop the work.
        """
        if not self._bad or self.on_bad_rows == "drop":
            return
        (path, what), bad = next(iter(self._bad.items()))
        others = len(self._bad) - 1
        more = f"; and {others} other kind{'s' if others > 1 else ''} of bad row" if others else ""
        raise UserError(
            f'{path}: {what} in {bad.count} rows, first {bad.example}{more}: mend them, or set on_bad_rows = "drop"'
        )


def first_example(bad_N: BoolArray, rows_N: Int64Array, values: object) -> str:
    """`row 17: 'abc'` for the first marked value of a column."""
    place = int(np.argmax(bad_N))
    return f"row {rows_N[place]}: {str(values[place])!r}"  # type: ignore[index]
