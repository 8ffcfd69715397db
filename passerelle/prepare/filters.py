"""Which events are kept and in what order: duplicates, repeats, minimum counts, stable sort.

Shape legend: E events in file order, K kept events, U users, I items.
"""

import numpy as np

from passerelle.arrays import BoolArray, Int64Array, IntArray
from passerelle.prepare.config import FiltersConfig


def select_events(
    users_E: IntArray,
    items_E: IntArray,
    timestamps_ms_E: Int64Array,
    event_types_E: IntArray,
    config: FiltersConfig,
) -> tuple[Int64Array, dict[str, int]]:
    """Returns the positions of the kept events, sorted by user, then timestamp, ties in file order; and
    how many were dropped, by reason.

    Filters apply in this order: duplicates, later events of a pair, minimum counts.
    """
    order_K = np.lexsort((timestamps_ms_E, users_E))  # stable: ties keep file order
    dropped: dict[str, int] = {}

    def keep(reason: str, keep_K: BoolArray) -> None:
        nonlocal order_K
        dropped[reason] = int(len(keep_K) - keep_K.sum())
        order_K = order_K[keep_K]

    if config.drop_duplicates:
        keep(
            "duplicate",
            first_of_each(
                event_types_E[order_K], items_E[order_K], timestamps_ms_E[order_K], users_E[order_K]
            ),
        )
    if config.first_event_per_pair:
        keep("repeat_of_a_pair", first_of_each(items_E[order_K], users_E[order_K]))
    keep_K, rare, short = core(users_E[order_K], items_E[order_K], config)
    order_K = order_K[keep_K]
    return order_K, dropped | {"item_below_minimum": rare, "user_below_minimum": short}


def first_of_each(*keys: IntArray) -> BoolArray:
    """Returns which rows are the first of their combination of keys; keys as
    in `np.lexsort`, in any order.
    """
    order = np.lexsort(keys)
    first = np.zeros(len(order), dtype=bool)
    changes = np.ones(len(order), dtype=bool)
    changes[1:] = np.logical_or.reduce([key[order[1:]] != key[order[:-1]] for key in keys])
    first[order[changes]] = True
    return first


def core(users_E: IntArray, items_E: IntArray, config: FiltersConfig) -> tuple[BoolArray, int, int]:
    """Returns which events the minimum counts leave, and how many were dropped with rare
    items and with users of few events.

    With `iterate`, the result is the largest set in which every user and every item has its minimum.
    """
    keep_E = np.ones(len(users_E), dtype=bool)
    dropped = {"item": 0, "user": 0}
    while True:
        before = sum(dropped.values())
        for name, codes_E, minimum in (
            ("item", items_E, config.min_item_events),
            ("user", users_E, config.min_user_events),
        ):
            counts = np.bincount(codes_E[keep_E], minlength=1)
            enough_E = counts[np.minimum(codes_E, len(counts) - 1)] >= minimum
            dropped[name] += int((keep_E & ~enough_E).sum())
            keep_E &= enough_E
        if not config.iterate or sum(dropped.values()) == before:
            return keep_E, dropped["item"], dropped["user"]
