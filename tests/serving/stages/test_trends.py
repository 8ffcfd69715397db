"""Trends: weights halve with the age of events, however often live events are read."""

import asyncio
import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.bundle import Bundle
from passerelle.calendar_time import HOUR_MS
from passerelle.ids import FIRST_ITEM_ROW
from serving.config import ServingConfig
from serving.events.base import Event, EventStoreError
from serving.events.sqlite_store import SqliteEventStore
from serving.schemas.recommend import RecommendRequest
from serving.stages.retrieval import EMPTY_QUERY, Retrieval
from serving.stages.trends import LOOK_BACK_HOURS, Trend, Trends
from serving.stages.types import RequestTime
from tests.support.playlists import ask, ids, recommender_with
from tests.support.waiting import eventually_async

DAYS = 0.5
TRENDING = ServingConfig.model_validate(
    {"cold_start": {"sources": [{"kind": "trending", "half_life_days": DAYS}]}}
)


def newest_hour(bundle: Bundle) -> int:
    return int(max(bundle.histories[1].values.to_pylist())) // HOUR_MS


def weights_by_loop(
    bundle: Bundle, live: Sequence[tuple[int, int, int]], half_life_days: float
) -> dict[int, float]:
    """Returns the weight of each row, up to a factor, event by event; `live` are (hour, row, count)."""
    weights: dict[int, float] = defaultdict(float)
    rows, times_ms = (column.values.to_pylist() for column in bundle.histories[:2])
    newest_ms, half_life_ms = max(times_ms), half_life_days * 24 * HOUR_MS
    for row, time_ms in zip(rows, times_ms, strict=True):
        weights[row] += 2.0 ** ((time_ms - newest_ms) / half_life_ms)
    for hour, row, count in live:
        weights[row] += count * 2.0 ** ((hour - newest_ms // HOUR_MS) * HOUR_MS / half_life_ms)
    return weights


def check(trend: Trend, weights: dict[int, float]) -> None:
    """Checks that weights are proportional to the expected ones, and rows are ranked by them."""
    expected_N = np.array([weights[row] for row in range(FIRST_ITEM_ROW, len(trend.weights_R))])
    np.testing.assert_allclose(
        trend.weights_R[FIRST_ITEM_ROW:] / trend.weights_R.max(),
        expected_N / expected_N.max(),
        rtol=1e-5,
        atol=1e-7,
    )
    assert sorted(trend.ranked_N.tolist()) == list(range(FIRST_ITEM_ROW, len(trend.weights_R)))
    assert (np.diff(trend.weights_R[trend.ranked_N]) <= 0).all()


def store_with(path: Path, events: Sequence[Event]) -> SqliteEventStore:
    store = SqliteEventStore(path)
    asyncio.run(store.append(events))
    return store


def event(number: int, item_id: object, hour: int) -> Event:
    return Event(str(number), "1", str(item_id), "view", hour * HOUR_MS + number)


def test_trending_weighs_events_by_age(bundle: Bundle) -> None:
    answer = ask(recommender_with(bundle, TRENDING), k=10)
    weights = weights_by_loop(bundle, [], DAYS)
    check(Trends(bundle, {DAYS}).trend(DAYS), weights)
    rows = [bundle.item_ids.row(item_id) for item_id in ids(answer)]
    assert (
        answer.fallback == "trending"
        and [weights[row] for row in rows] == sorted(weights.values(), reverse=True)[:10]
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 299)), max_size=60),
    st.lists(st.integers(1, 32), max_size=4),
)
def test_live_events_weigh_like_those_of_the_bundle(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory, live: list[tuple[int, int]], read_at: list[int]
) -> None:
    """Events are stored when they happen, and read in between."""
    start, item_ids, clock = newest_hour(bundle), bundle.items.column("item_id").to_pylist(), [0.0]
    store = store_with(
        tmp_path_factory.mktemp("trends") / "events.sqlite",
        [event(0, item_ids[5], start - 1), event(1, "unknown", start + 1)],
    )
    clock[0] = (start + 1) * HOUR_MS / 1e3
    trends = Trends(bundle, {DAYS, 7.0}, store, clock=lambda: clock[0])

    async def live_through() -> None:
        for hour in range(1, 33):
            clock[0] = (start + hour) * HOUR_MS / 1e3
            happened = [(number, item) for number, (when, item) in enumerate(live, start=2) if when == hour]
            await store.append([event(number, item_ids[item], start + hour) for number, item in happened])
            if hour in read_at or hour == 32:
                await trends.read()
        await store.close()

    asyncio.run(live_through())
    counted = [(start + hour, item + FIRST_ITEM_ROW, 1) for hour, item in live]
    for days in (DAYS, 7.0):
        check(trends.trend(days), weights_by_loop(bundle, counted, days))


def test_events_dated_in_the_future_are_left_out(bundle: Bundle) -> None:
    """One wrong date would otherwise halve everything else to nothing."""
    rows, times_ms = (np.array(column.values) for column in bundle.histories[:2])
    wrong = times_ms.copy()
    wrong[0] = 4_070_908_800_000  # 2099
    columns = [pa.LargeListArray.from_arrays(bundle.histories[0].offsets, values) for values in (rows, wrong)]
    changed = dataclasses.replace(bundle, histories=(*columns, bundle.histories[2]))
    weights = weights_by_loop(bundle, [], DAYS)
    weights[int(rows[0])] -= 2.0 ** ((int(times_ms[0]) - int(times_ms.max())) / (DAYS * 24 * HOUR_MS))
    trends = Trends(changed, {DAYS})
    check(trends.trend(DAYS), weights)


def test_events_long_after_the_bundle_rank_first(bundle: Bundle, tmp_path: Path) -> None:
    long_after = newest_hour(bundle) + 24 * 365 * 20
    item_ids = bundle.items.column("item_id").to_pylist()
    events = [
        event(1, item_ids[7], long_after),
        event(2, item_ids[9], long_after),
        event(3, item_ids[9], long_after),
    ]
    forgotten = [
        event(4, item_ids[11], long_after - LOOK_BACK_HOURS - 1),
        event(5, item_ids[11], long_after + 1),
    ]
    store = store_with(tmp_path / "events.sqlite", [*events, *forgotten])
    trends = Trends(bundle, {DAYS}, store, clock=lambda: long_after * HOUR_MS / 1e3)
    before = trends.trend(DAYS).ranked_N.tolist()
    asyncio.run(trends.read())
    live = [9 + FIRST_ITEM_ROW, 7 + FIRST_ITEM_ROW]
    assert trends.trend(DAYS).ranked_N.tolist() == [*live, *(row for row in before if row not in live)]
    assert trends.trend(DAYS).weights_R[live].tolist() == [2.0, 1.0]


def test_recommendations_follow_live_events(bundle: Bundle, tmp_path: Path) -> None:
    unpopular = bundle.items.column("item_id").to_pylist()[int(np.argmin(bundle.counts_R[FIRST_ITEM_ROW:]))]
    store = store_with(
        tmp_path / "events.sqlite", [Event("1", "1", str(unpopular), "view", int(1e3 * time.time()))]
    )
    retrieval = Retrieval(bundle, TRENDING, store)

    async def asked() -> list[int]:
        firsts: list[int] = []

        async def is_recommended() -> bool:
            found = await retrieval.run(RecommendRequest(k=1), EMPTY_QUERY, RequestTime.read(None))
            firsts.append(int(found.rows_C[0]))
            return firsts[-1] == bundle.item_ids.row(unpopular)

        await eventually_async(is_recommended)
        return firsts

    assert asyncio.run(asked())[0] != bundle.item_ids.row(unpopular)


def test_failing_store_leaves_trends_unchanged(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteEventStore(tmp_path / "events.sqlite")
    trends = Trends(bundle, {DAYS}, store)
    before = trends.trend(DAYS)

    async def refuse(*_: int) -> None:
        raise EventStoreError("it is away")

    async def work() -> None:
        monkeypatch.setattr(store, "hourly", refuse)
        trends.start_refreshing()
        trends.start_refreshing()  # a second call changes nothing
        await eventually_async(lambda: caplog.messages)

    with caplog.at_level(logging.WARNING):
        asyncio.run(work())
    assert trends.trend(DAYS) is before and caplog.messages == [
        "trends without the latest events: it is away"
    ]
