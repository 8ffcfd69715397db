"""Event types by name and by code: a code is the position of the name in the `event_types` of a manifest."""

from collections.abc import Iterable, Sequence

import numpy as np

from passerelle.arrays import Int64Array
from passerelle.errors import UserError


def event_type_codes(
    names: Iterable[str], known: Sequence[str], where: str, owner: str = "this model"
) -> Int64Array:
    """Returns the code of each name.

    Args:
        known: the `event_types` of a manifest.
        where: origin of the names, for the message.
        owner: what has these event types, for the message.

    Raises:
        UserError: there is no such event type.
    """
    names = list(names)
    if unknown := sorted(set(names).difference(known)):
        missing = ", ".join(map(repr, unknown))
        raise UserError(f"{where}: no {missing} among the events of {owner}: {', '.join(known)}")
    return np.array([known.index(name) for name in names], dtype=np.int64)
