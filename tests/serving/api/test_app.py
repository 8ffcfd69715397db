"""The HTTP interface without Ray: its answers, and that no input causes a server error."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passerelle.bundle import Bundle
from serving.api.app import build_app
from serving.item_info import to_json_value
from serving.recommender import Recommender
from serving.triton.client import TritonClient
from tests.serving.conftest import recommender_of
from tests.support.asgi import call, open_client


@pytest.fixture(scope="module")
def app(recommender: Recommender) -> Any:
    return build_app(recommender)


def test_recommend(app: Any) -> None:
    answer = call(app, "POST", "/v1/recommend", json={"user_id": 1003, "k": 4})
    values = answer.json()
    assert (
        answer.status_code == 200
        and values["model_version"] == 7
        and values["fallback"] is None
        and values["ignored_history"] == 0
    )
    assert [item["rank"] for item in values["items"]] == [1, 2, 3, 4] and len(
        {item["item_id"] for item in values["items"]}
    ) == 4
    assert sorted((item["score"] for item in values["items"]), reverse=True) == [
        item["score"] for item in values["items"]
    ]
    assert all(
        set(source) == {"name", "rank", "score"} for item in values["items"] for source in item["sources"]
    )
    assert (
        set(values["timings_ms"]) == {"lookup", "encode", "retrieval", "ranking", "ordering", "total"}
        and len(values["request_id"]) == 32
    )


def test_unknown_user_gets_popular_items(app: Any) -> None:
    values = call(app, "POST", "/v1/recommend", json={"user_id": 1, "k": 3}).json()
    assert values["fallback"] == "popular" and [item["score"] for item in values["items"]] == [
        300,
        299,
        298,
    ]
    assert [item["sources"][0]["name"] for item in values["items"]] == ["popular"] * 3


def test_exclusion_and_filters(app: Any) -> None:
    history = [7, 17, 27, 37]
    seen = call(
        app, "POST", "/v1/recommend", json={"history": history, "k": 300, "exclude_seen": False}
    ).json()
    unseen = call(app, "POST", "/v1/recommend", json={"history": history, "k": 300}).json()
    assert len(seen["items"]) == 300 and {item["item_id"] for item in seen["items"]} - {
        item["item_id"] for item in unseen["items"]
    } == set(history)
    filters = [
        {"op": "range", "column": "year", "min": 1990},
        {"op": "contains", "column": "genres", "value": "喜劇"},
    ]
    few = call(app, "POST", "/v1/recommend", json={"history": history, "k": 300, "filters": filters}).json()[
        "items"
    ]
    features = [call(app, "GET", f"/v1/items/{item['item_id']}").json()["features"] for item in few]
    assert 0 < len(few) < 300 and all(
        feature["year"] >= 1990 and "喜劇" in feature["genres"] for feature in features
    )


@pytest.mark.parametrize(
    ("body", "loc", "message"),
    [
        ({"k": 301}, [], "k: 301 is more than the 300 items of the catalogue"),
        ({"k": 0}, ["body", "k"], "greater than or equal to 1"),
        ({"k": "10"}, ["body", "k"], "valid integer"),
        ({"user": 3}, ["body", "user"], "Extra inputs are not permitted"),
        ({"user_id": True}, ["body", "user_id", "int"], "valid integer"),
        ({"user_id": "ann"}, [], "this catalogue's ids are integers"),
        ({"history": [1, None]}, ["body", "history", 1, "int"], "valid integer"),
        (
            {"context": {"timestamp_ms": 1_700_000_000_000_000}},
            ["body", "context", "timestamp_ms"],
            "less than or equal to",
        ),
        (
            {"filters": [{"op": "equals", "column": "x", "value": 1}]},
            [],
            "filters.0: column 'x' is not an item column; known are genres",
        ),
        (
            {"filters": [{"op": "near"}]},
            ["body", "filters", 0],
            "'near' found using 'op' does not match any of the expected tags",
        ),
    ],
)
def test_errors_name_the_field(app: Any, body: dict[str, Any], loc: list[Any], message: str) -> None:
    answer = call(app, "POST", "/v1/recommend", json=body)
    problem = answer.json()["detail"][0]
    assert answer.status_code == 422 and problem["loc"] == loc and message in problem["msg"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"k": 1',
        b"[]",
        b"null",
        b'"\xff"',
        b'{"k": NaN}',
        b'{"user_id": "\\ud800"}',
        b'{"k": 1e400}',
    ],
)
def test_malformed_json(app: Any, content: bytes) -> None:
    answer = call(app, "POST", "/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["msg"]


def test_similar_and_items(app: Any) -> None:
    values = call(app, "POST", "/v1/similar", json={"item_id": 17, "k": 5}).json()
    assert len(values["items"]) == 5 and 17 not in {item["item_id"] for item in values["items"]}
    assert values["items"][0]["sources"][0]["name"] == "similar"
    item = call(app, "GET", "/v1/items/7").json()
    assert item == {
        "item_id": 7,
        "title": "Title № 0",
        "features": {"title": "Title № 0", "genres": [], "kind": "film", "year": None},
    }
    for answer in (
        call(app, "POST", "/v1/similar", json={"item_id": 8}),
        call(app, "GET", "/v1/items/8"),
        call(app, "GET", "/v1/items/a/b"),
    ):
        assert answer.status_code == 404 and "item_id" in answer.json()["detail"][0]["msg"]


def test_values_of_every_type_become_json() -> None:
    assert to_json_value({"latitude": 48.5, "longitude": float("nan")}) == {
        "latitude": 48.5,
        "longitude": None,
    }
    assert to_json_value(["a", None, 2.0, [1]]) == ["a", None, 2.0, [1]]


def test_unicode_ids_in_paths(unicode_recommender: Recommender) -> None:
    answer = call(build_app(unicode_recommender), "GET", "/v1/items/%E5%95%86%E5%93%81%200")
    assert answer.status_code == 200 and answer.json()["item_id"] == "商品 0"


def test_health_and_documentation(app: Any) -> None:
    assert call(app, "GET", "/healthz").json() == {"status": "ok"}
    assert call(app, "GET", "/readyz").json() == {
        "ready": True,
        "model_version": 7,
        "checks": {"networks": True},
    }
    paths = call(app, "GET", "/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/similar", "/v1/items/{item_id}", "/healthz", "/readyz", "/metrics"} <= set(
        paths
    )
    assert call(app, "GET", "/docs").status_code == 200


def test_metrics_count_outcomes(recommender: Recommender) -> None:
    app = build_app(recommender)
    for body in ({"user_id": 1000}, {"user_id": 1001}, {}, {"k": 0}):
        call(app, "POST", "/v1/recommend", json=body)
    lines = call(app, "GET", "/metrics").text.splitlines()
    for outcome, count in (("ok", 2), ("popular", 1), ("422", 1)):
        assert f'passerelle_requests_total{{endpoint="recommend",outcome="{outcome}"}} {count}.0' in lines
    assert 'passerelle_stage_seconds_count{stage="ranking"} 3.0' in lines


def test_answers_without_triton(bundle: Bundle) -> None:
    """Answers are degraded, with items similar to the history, and the service is not ready."""

    async def answers() -> list[httpx.Response]:
        client = TritonClient("127.0.0.1:9")
        app = build_app(recommender_of(bundle, client, 1))
        async with open_client(app) as http:
            found = [
                await http.post("/v1/recommend", json={"user_id": 1000}),
                await http.get("/readyz"),
                await http.post("/v1/recommend", json={}),
            ]
        await client.close()
        return found

    personal, ready, popular = asyncio.run(answers())
    assert (
        personal.status_code == 200
        and personal.json()["fallback"] == "similar"
        and personal.json()["degraded"] == ["query_encoder"]
    )
    assert ready.status_code == 503 and ready.json()["ready"] is False and popular.status_code == 200


IDS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 3100)
    | st.floats()
    | st.text(max_size=5)
    | st.just("\ud800")
)
ANYTHING = st.recursive(
    IDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FILTERS = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["equals", "in", "range", "contains", "or"]) | ANYTHING,
        "column": st.sampled_from(["year", "genres", "kind", "title", "x"]) | ANYTHING,
    },
    optional=dict.fromkeys(("value", "values", "min", "max", "other"), ANYTHING),
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "user_id": IDS,
        "history": st.lists(IDS, max_size=5) | ANYTHING,
        "k": st.integers(-1, 310) | ANYTHING,
        "exclude_seen": st.booleans() | ANYTHING,
        "context": st.fixed_dictionaries({}, optional={"timestamp_ms": st.integers(-1, 2**62) | ANYTHING})
        | ANYTHING,
        "filters": st.lists(FILTERS, max_size=2) | ANYTHING,
        "item_id": IDS,
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["/v1/recommend", "/v1/similar"]), BODIES | ANYTHING)
def test_no_body_causes_a_server_error(app: Any, path: str, body: Any) -> None:
    answer = call(
        app, "POST", path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (200, 404, 409, 422), answer.text
    answer.json()
