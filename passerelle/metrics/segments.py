"""Groups of users by the length of their history, so that a metric can be reported for each.

Shape legend: Q users, S segments.
"""

from dataclasses import dataclass

import numpy as np

from passerelle.arrays import Int64Array, IntArray
from passerelle.errors import UserError


@dataclass(frozen=True)
class Segment:
    """Users whose history has `shortest` to `longest` events, both included."""

    shortest: int
    longest: int
    members: Int64Array
    """Positions of the users."""

    @property
    def name(self) -> str:
        return f"{self.shortest}-{self.longest} events"


def length_segments(lengths_Q: IntArray, edges: tuple[int, ...] | None = None) -> list[Segment]:
    """Cut users by history length, shortest first.

    A segment's name has the lengths that occur in it, and an empty one is left out.

    Args:
        edges: a user belongs to the segment after the last edge that is not above the length. (20, 100) cuts
            into below 20, 20 to 99, and 100 or more.
            Without edges, terciles: users of the same length stay together, so that the thirds are
            equal only as far as ties allow.

    Raises:
        UserError: the edges do not rise, or the first is below 1.

    >>> segments = length_segments(np.array([5, 30, 7, 200, 20]), (20, 100))
    >>> [(segment.name, segment.members.tolist()) for segment in segments]
    [('5-7 events', [0, 2]), ('20-30 events', [1, 4]), ('200-200 events', [3])]
    """
    if edges is None:
        cuts = np.quantile(lengths_Q, [1 / 3, 2 / 3], method="higher") if len(lengths_Q) else np.zeros(2)
    else:
        cuts = np.array(edges)
        if not len(cuts) or cuts[0] < 1 or (np.diff(cuts) <= 0).any():
            raise UserError(
                f"segments {','.join(map(str, edges))}: lengths of history must rise, from 1 or more, "
                "such as 20,100"
            )
    number_Q = np.searchsorted(cuts, lengths_Q, side="right")
    members = [np.flatnonzero(number_Q == number) for number in range(len(cuts) + 1)]
    return [
        Segment(int(lengths_Q[chosen].min()), int(lengths_Q[chosen].max()), chosen)
        for chosen in members
        if len(chosen)
    ]
