"""Live events through the stages and over HTTP."""

import asyncio
from typing import Any

import pytest

from passerelle.bundle import Bundle
from serving.api.app import build_app
from serving.events.base import Event
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from tests.serving.conftest import recommender_of
from tests.support.asgi import call_all
from tests.support.inference import OnnxInference


def test_events_count_in_the_next_recommendation(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    ask = ("POST", "/v1/recommend", {"user_id": 4_000, "k": 5})
    clicks = {"events": [{"event_id": str(item), "user_id": 4_000, "item_id": item} for item in (7, 17, 27)]}
    cold, kept, warm, again = call_all(
        app, ask, ("POST", "/v1/events", clicks), ask, ("POST", "/v1/events", clicks)
    )
    assert cold.json()["fallback"] == "popular" and warm.json()["fallback"] is None
    assert (
        kept.status_code == 202
        and kept.json() == {"accepted": 3, "duplicates": 0}
        and again.json() == {"accepted": 0, "duplicates": 3}
    )
    assert not {7, 17, 27} & {item["item_id"] for item in warm.json()["items"]}
    given, same = call_all(
        app,
        ("POST", "/v1/recommend", {"user_id": 1000, "k": 5}),
        ("POST", "/v1/events", {"event_id": "x", "user_id": 1000, "item_id": 47}),
    )
    (after,) = call_all(app, ("POST", "/v1/recommend", {"user_id": 1000, "k": 5}))
    assert same.status_code == 202 and given.json()["items"] != after.json()["items"]


def test_erased_user_is_treated_as_unknown(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    click = ("POST", "/v1/events", {"event_id": "x", "user_id": 1000, "item_id": 47})
    ask = ("POST", "/v1/recommend", {"user_id": 1000})
    known, _, gone, unknown = call_all(app, ask, click, ("DELETE", "/v1/users/1000", None), ask)
    assert (
        known.json()["fallback"] is None
        and gone.json() == {"events": 1}
        and unknown.json()["fallback"] == "popular"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"event_id": "x", "user_id": 1000}, "an event has event_id, user_id and item_id"),
        (
            {
                "event_id": "x",
                "user_id": 1000,
                "item_id": 7,
                "events": [{"event_id": "y", "user_id": 1, "item_id": 7}],
            },
            "give either events or",
        ),
        ({"event_id": "x", "user_id": "ann", "item_id": 7}, "events.0.user_id: user_id 'ann'"),
        (
            {"event_id": "x", "user_id": 1000, "item_id": 7, "event_type": "buy"},
            "events.0.event_type: no 'buy' among the events",
        ),
        ({"event_id": "", "user_id": 1000, "item_id": 7}, "at least 1 character"),
        ({"events": [{"event_id": "x", "user_id": 1, "item_id": 7}] * 1001}, "at most 1000 items"),
    ],
)
def test_invalid_events_are_refused(bundle: Bundle, store: SqliteEventStore, body: Any, message: str) -> None:
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (answer,) = call_all(app, ("POST", "/v1/events", body))
    assert answer.status_code == 422 and any(
        message in problem["msg"] for problem in answer.json()["detail"]
    ), answer.text


def test_event_of_the_bundle_counts_once(bundle: Bundle, store: SqliteEventStore) -> None:
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (before,) = call_all(app, ("GET", "/v1/history?user_id=1003", None))
    known = before.json()["events"]
    again = [
        {
            "event_id": str(i),
            "user_id": 1003,
            "item_id": event["item_id"],
            "timestamp_ms": event["timestamp_ms"],
        }
        for i, event in enumerate(known)
    ]
    new = {"event_id": "new", "user_id": "1003", "item_id": 7}
    kept, after = call_all(
        app, ("POST", "/v1/events", {"events": [*again, new]}), ("GET", "/v1/history?user_id=1003", None)
    )
    assert kept.json()["accepted"] == len(known) + 1 and len(after.json()["events"]) == len(known) + 1
    assert after.json()["events"][0]["item_id"] == 7


def test_events_with_ids_of_other_bundles_are_ignored(bundle: Bundle, store: SqliteEventStore) -> None:
    other = [Event("a", "4", "an item with a name", "view", 5), Event("b", "4", "7", "unheard of", 6)]
    asyncio.run(store.append([*other, Event("c", "4", "7", "view", 7)]))
    app = build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, events=store), EventIntake(bundle, store)
    )
    (found,) = call_all(app, ("GET", "/v1/history?user_id=4", None))
    assert [event["timestamp_ms"] for event in found.json()["events"]] == [7]
