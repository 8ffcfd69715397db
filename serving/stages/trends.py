"""Trending items: event counts in the bundle and since, with weights that halve after every half-life.

Shape legend: R item rows (special rows included), N = R - FIRST_ITEM_ROW items, E events,
H (hour, item) pairs with events.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from passerelle.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from passerelle.bundle import Bundle
from passerelle.calendar_time import HOUR_MS
from passerelle.id_map import IdMap, parsed_or_none
from passerelle.ids import FIRST_ITEM_ROW
from serving.events.base import EventStore, EventStoreError, HourlyCount

REFRESH_INTERVAL_S = 30.0
"""Seconds between two readings of live events."""
LOOK_BACK_HOURS = 60 * 24
"""Maximum age of the live events that are read."""
_OPEN_HOURS = 2
"""Events of the latest hours may still come in: they are read again each time."""
_CHUNK = 4_000_000

logger = logging.getLogger(__name__)


class Trend(NamedTuple):
    """The trend of one half-life."""

    ranked_N: Int64Array
    """Rows by weight, largest first; rows of equal weight are in the order of the bundle."""
    weights_R: Float32Array
    """Sum over the events of an item, each halved with every half-life between it and the newest event."""


@dataclass(frozen=True)
class _Counts:
    """Hourly event counts of known items, since the bundle."""

    hours_H: Int64Array
    rows_H: Int64Array
    counts_H: Float64Array

    def __getitem__(self, chosen_H: BoolArray) -> "_Counts":
        return _Counts(self.hours_H[chosen_H], self.rows_H[chosen_H], self.counts_H[chosen_H])


class Trends:
    """The trends of some half-lives, refreshed with live events.

    Args:
        bundle: histories up to its training.
        half_lives_days: the half-lives that `trend` takes.
        events: store of live events; None where there is none.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        bundle: Bundle,
        half_lives_days: Collection[float],
        events: EventStore | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._item_ids = bundle.item_ids
        self._events = events
        self._clock = clock
        self._half_lives_hours = {days: 24 * days for days in half_lives_days}
        now_ms = int(1e3 * clock())
        newest_ms = _newest_ms(bundle.histories[1].values, now_ms) if half_lives_days else 0
        self._reference_hour = newest_ms // HOUR_MS
        """Hour that the weights of closed hours refer to."""
        self._next_hour = self._reference_hour + 1
        self._closed_R = {
            days: _bundle_weights(bundle, now_ms, newest_ms, days * 24 * HOUR_MS) for days in half_lives_days
        }
        self._bundle_order_N = {days: _ranked(weights_R) for days, weights_R in self._closed_R.items()}
        self._trends = {
            days: Trend(ranked_N, self._closed_R[days].astype(np.float32))
            for days, ranked_N in self._bundle_order_N.items()
        }
        self._refreshing: asyncio.Task[None] | None = None

    def trend(self, half_life_days: float) -> Trend:
        """Returns the trend of a half-life, as of the latest reading."""
        return self._trends[half_life_days]

    def start_refreshing(self) -> None:
        """Starts to read live events in the background, unless that goes on already."""
        if (
            self._events is not None
            and self._trends
            and (self._refreshing is None or self._refreshing.done())
        ):
            self._refreshing = asyncio.create_task(self._refresh())

    async def read(self) -> None:
        """Reads the live events since the last reading.

        Raises:
            EventStoreError: the store does not answer.
        """
        if self._events is None:
            return
        now_hour = int(1e3 * self._clock()) // HOUR_MS
        hourly = await self._events.hourly(max(self._next_hour, now_hour - LOOK_BACK_HOURS), now_hour)
        await asyncio.to_thread(self._add, hourly, now_hour)

    async def _refresh(self) -> None:
        while True:
            try:
                await self.read()
            except EventStoreError as error:
                logger.warning("trends without the latest events: %s", error)
            except Exception as error:  # no caller awaits this task, so that no other code would report it
                logger.error("trends without the latest events: %s", type(error).__name__)
            await asyncio.sleep(REFRESH_INTERVAL_S)

    def _add(self, hourly: Sequence[HourlyCount], now_hour: int) -> None:
        counts = _known_items(self._item_ids, hourly)
        open_from = now_hour - _OPEN_HOURS + 1
        closed_H = counts.hours_H < open_from
        closed, still_open = counts[closed_H], counts[~closed_H]
        reference_hour = int(closed.hours_H.max(initial=self._reference_hour))
        newest_hour = int(still_open.hours_H.max(initial=reference_hour))
        all_closed_R, trends = {}, {}
        for days, half_life_hours in self._half_lives_hours.items():
            closed_R = _updated(
                self._closed_R[days], self._reference_hour, closed, reference_hour, half_life_hours
            )
            weights_R = _updated(closed_R, reference_hour, still_open, newest_hour, half_life_hours)
            order_N = self._bundle_order_N[days]
            all_closed_R[days] = closed_R
            trends[days] = Trend(
                order_N[np.argsort(-weights_R[order_N], kind="stable")], weights_R.astype(np.float32)
            )
        self._closed_R, self._trends = all_closed_R, trends
        self._reference_hour, self._next_hour = reference_hour, max(self._next_hour, open_from)


def _newest_ms(times_ms: pa.Array, now_ms: int) -> int:
    """Returns the latest time that is not after now: one wrong date would halve all others to nothing."""
    pieces = (times_ms.slice(first, _CHUNK).to_numpy() for first in range(0, len(times_ms), _CHUNK))
    return max((int(piece.max(initial=0, where=piece <= now_ms)) for piece in pieces), default=0)


def _bundle_weights(bundle: Bundle, now_ms: int, newest_ms: int, half_life_ms: float) -> Float64Array:
    """Returns the weights [R] as of the newest event, without events that are dated after now.

    Histories are read in pieces, as those of millions of users are mapped from a file.
    """
    rows_E, times_ms_E = (column.values for column in bundle.histories[:2])
    weights_R = np.zeros(len(bundle.counts_R))
    for first in range(0, len(rows_E), _CHUNK):
        rows, times_ms = (values.slice(first, _CHUNK).to_numpy() for values in (rows_E, times_ms_E))
        halved = np.where(
            times_ms <= now_ms, np.exp2(np.minimum(times_ms - newest_ms, 0) / half_life_ms), 0.0
        )
        weights_R += np.bincount(rows, weights=halved, minlength=len(weights_R))
    return weights_R


def _updated(
    weights_R: Float64Array, as_of_hour: int, counts: _Counts, newest_hour: int, half_life_hours: float
) -> Float64Array:
    """Returns the weights as of the newest hour, with further counts."""
    halved_H = np.exp2((counts.hours_H - newest_hour) / half_life_hours)
    added_R = np.bincount(counts.rows_H, weights=counts.counts_H * halved_H, minlength=len(weights_R))
    return np.asarray(weights_R * 2.0 ** ((as_of_hour - newest_hour) / half_life_hours) + added_R)


def _ranked(weights_R: Float64Array) -> Int64Array:
    return np.asarray(FIRST_ITEM_ROW + np.argsort(-weights_R[FIRST_ITEM_ROW:], kind="stable"))


def _known_items(item_ids: IdMap, hourly: Sequence[HourlyCount]) -> _Counts:
    """Returns the counts of items that this bundle has; a store may hold events of another bundle's items."""
    texts_H = pa.array([one.item_id for one in hourly], pa.string()).dictionary_encode()
    ids = [parsed_or_none(item_ids, text) for text in texts_H.dictionary.to_pylist()]
    rows_H = item_ids.rows(pa.array(ids, item_ids.type))[texts_H.indices.to_numpy()]
    hours_H, counts_H = (
        np.array([one.hour for one in hourly], np.int64),
        np.array([one.events for one in hourly], np.float64),
    )
    return _Counts(hours_H, rows_H, counts_H)[rows_H >= FIRST_ITEM_ROW]
