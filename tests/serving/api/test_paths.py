"""Ids of any characters in paths, HEAD, and refusals of other methods."""

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest

from passerelle.bundle import Bundle, open_bundle
from passerelle.id_map import IdMap
from passerelle.ids import FIRST_ITEM_ROW, ITEM_ID
from serving.api.app import build_app
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from tests.support.asgi import call, recommend
from tests.support.bundles import Shape, build_bundle
from tests.support.inference import OnnxInference
from tests.support.playlists import recommender_of

STRANGE = ("a\nb", "line\n", "a/b", "/", "//x", "..", ".", "?x=1", "#", "%2F", "é商", " ", "a\rb", "\x00")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An application whose first items have the strange ids."""
    folder = tmp_path_factory.mktemp("strange")
    bundle = open_bundle(build_bundle(folder / "bundle", Shape(string_ids=True)))
    ids = pa.array([*STRANGE, *bundle.items.column(ITEM_ID).to_pylist()[len(STRANGE) :]])
    items = bundle.items.set_column(bundle.items.column_names.index(ITEM_ID), ITEM_ID, ids)
    bundle = dataclasses.replace(
        bundle, items=items, item_ids=IdMap(ids, first_row=FIRST_ITEM_ROW, name=ITEM_ID)
    )
    store = SqliteEventStore(folder / "events.sqlite")
    yield build_app(recommender_of(bundle, OnnxInference(bundle), 1), EventIntake(bundle, store))
    asyncio.run(store.close())


@pytest.mark.parametrize("item_id", STRANGE)
def test_every_id_has_a_page(app: Any, item_id: str) -> None:
    found = call(app, "GET", "/v1/items", params={"item_id": item_id})
    assert found.status_code == 200
    assert found.json()["item_id"] == item_id
    # A client resolves these before it sends the path.
    if item_id not in (".", "..", "//x"):
        assert call(app, "GET", f"/v1/items/{quote(item_id, safe='')}").json() == found.json()


@pytest.mark.parametrize("user_id", STRANGE)
def test_every_user_can_be_erased(app: Any, user_id: str) -> None:
    event = {"event_id": f"e{user_id}", "user_id": user_id, "item_id": "a/b"}
    assert call(app, "POST", "/v1/events", json=event).status_code == 202
    erased = call(app, "DELETE", "/v1/users", params={"user_id": user_id})
    assert (erased.status_code, erased.json()) == (200, {"events": 1})
    if user_id not in (".", "..", "//x"):
        assert call(app, "DELETE", f"/v1/users/{quote(user_id, safe='')}").status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/", "/v1/items?item_id=a/b", "/openapi.json"])
def test_head_is_get_without_a_body(app: Any, path: str) -> None:
    got, asked = call(app, "GET", path), call(app, "HEAD", path)
    assert asked.status_code == got.status_code == 200
    assert asked.content == b"" != got.content
    assert asked.headers["content-type"] == got.headers["content-type"]


def test_head_of_a_service_that_is_not_ready(bundle: Bundle) -> None:
    class Down(OnnxInference):
        async def ready(self, *_: Any) -> bool:
            return False

    app = build_app(recommender_of(bundle, Down(bundle), 1))
    assert call(app, "GET", "/readyz").status_code == call(app, "HEAD", "/readyz").status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/v1/recommend", "POST"), ("PUT", "/healthz", "GET"), ("POST", "/v1/users/x", "DELETE")],
)
def test_refused_methods_name_the_allowed_ones(app: Any, method: str, path: str, allowed: str) -> None:
    answer = call(app, method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("large", [True, False])
def test_ids_that_javascript_cannot_hold_are_text(bundle: Bundle, large: bool) -> None:
    """All ids of the catalogue then, so that a client sees one type."""
    offset = 1_700_000_000_000_000_001 if large else 0
    ids = pa.array([offset + item_id for item_id in bundle.items.column(ITEM_ID).to_pylist()])
    items = bundle.items.set_column(bundle.items.column_names.index(ITEM_ID), ITEM_ID, ids)
    shifted = dataclasses.replace(
        bundle, items=items, item_ids=IdMap(ids, first_row=FIRST_ITEM_ROW, name=ITEM_ID)
    )
    app = build_app(recommender_of(shifted, OnnxInference(shifted), 1))
    shown = [item["item_id"] for item in recommend(app, {"user_id": 1003, "k": 5}).json()["items"]]
    assert {type(item_id) for item_id in shown} == {str if large else int}
    assert set(map(int, shown)) <= set(ids.to_pylist())
    info = call(app, "GET", f"/v1/items/{shown[0]}").json()
    assert info["item_id"] == shown[0]
    near = call(app, "POST", "/v1/similar", json={"item_id": shown[0], "k": 2})
    assert near.status_code == 200
    users = call(app, "GET", "/v1/explorer").json()["users"]
    assert {type(user_id) for user_id in users} == {str if large else int}
    history = call(app, "GET", "/v1/history", params={"user_id": users[0]}).json()
    assert {type(event["item_id"]) for event in history["events"]} == {str if large else int}
