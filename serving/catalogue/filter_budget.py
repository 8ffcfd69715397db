"""The work of filters: how much it is expected to be, and a budget that ends what is too much.

The unit of work is one visit of one row, of the order of a nanosecond.
"""

import math
from collections.abc import Sequence

from passerelle.errors import UserError
from serving.deadline import Deadline
from serving.schemas.filters import Filter, In, Within, all_conditions, radii_of

CONDITION_WORK = 30_000
"""Of each condition, whatever it visits."""
LOOKUP_WORK = 1_000
"""Of each value or radius that is looked up."""
PLACE_WORK = 100
"""Of each place whose distance is computed."""
_EXPECTED_PLACE_WORK = 10
"""A radius leaves out most places of a catalogue."""


class FilterBudget:
    """The work that the filters of one request may still do.

    Args:
        max_work: row visits in all.
        deadline: work ends with it; None where nobody waits.
    """

    def __init__(self, max_work: float = math.inf, deadline: Deadline | None = None) -> None:
        self._max_work = max_work
        self._left = max_work
        self._deadline = deadline

    def spend(self, work: float, path: str) -> None:
        """Takes some work from the budget, before it is done.

        Args:
            path: the path of the condition in the request, for messages.

        Raises:
            UserError: less work is left.
            DeadlineError: the deadline has passed.
        """
        if self._deadline is not None:
            self._deadline.check()
        self._left -= work
        if self._left < 0:
            raise UserError(
                f"{path}: up to here the filters take more than {self._max_work:.2g} visits of rows, as many "
                "as one request may take (limits.max_filter_work): give fewer conditions, values or radii, "
                "or smaller radii"
            )

    def unlimited(self) -> "FilterBudget":
        """Returns a budget of any work with the same deadline, for conditions of the configuration."""
        return FilterBudget(deadline=self._deadline)


def expected_work(filters: Sequence[Filter], num_rows: int) -> int:
    """Returns the expected work of some filters, without a look at the columns.

    Args:
        num_rows: rows that one condition may visit.
    """
    work = 0
    for condition in all_conditions(filters):
        rows = num_rows * (_EXPECTED_PLACE_WORK if isinstance(condition, Within) else 1)
        lookups = len(condition.values) if isinstance(condition, In) else radii_of(condition)
        work += CONDITION_WORK + rows + LOOKUP_WORK * lookups
    return work
