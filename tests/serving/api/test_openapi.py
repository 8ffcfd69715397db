"""The OpenAPI description tells what one service takes; `make fuzz` tries all of it."""

from pathlib import Path
from typing import Any

import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.api.app import build_app
from serving.config import ServingConfig
from tests.serving.conftest import recommender_of
from tests.support.asgi import call
from tests.support.inference import OnnxInference
from tests.support.offers import write_offers


def schemas(bundle: Bundle, **config: Any) -> dict[str, Any]:
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, validate(ServingConfig, config, "test"))
    described: dict[str, Any] = call(build_app(recommender), "GET", "/openapi.json").json()
    return {**described["components"]["schemas"], "paths": described["paths"]}


def test_ids_have_the_type_of_the_bundle(bundle: Bundle, unicode_bundle: Bundle) -> None:
    integers, texts = (schemas(one)["RecommendRequest"]["properties"] for one in (bundle, unicode_bundle))
    for name in ("user_id", "history", "similar_to"):
        assert "pattern" in str(integers[name]) and "pattern" not in str(texts[name])
    (parameter,) = schemas(bundle)["paths"]["/v1/items/{item_id}"]["get"]["parameters"]
    assert parameter["schema"]["pattern"] == "^-?[0-9]{1,18}$"
    (parameter,) = schemas(unicode_bundle)["paths"]["/v1/items/{item_id}"]["get"]["parameters"]
    assert "pattern" not in parameter["schema"]


def test_conditions_name_the_columns_that_they_apply_to(bundle: Bundle, tmp_path: Path) -> None:
    found = schemas(bundle)
    assert found["Range"]["properties"]["column"]["enum"] == ["year"]
    assert found["Present"]["properties"]["column"]["enum"] == ["title", "genres", "kind", "year"]
    assert [one["properties"]["column"]["enum"] for one in found["Equals"]["anyOf"]] == [
        ["title", "kind"],
        ["year"],
    ]
    assert not {"Within", "Overlaps"} & set(found), "no column holds places or times"
    assert "Within" not in str(found["RecommendRequest"]["properties"]["filters"])
    offers = {"file": str(write_offers(bundle, tmp_path / "offers.parquet")), "price_column": "price"}
    with_offers = schemas(bundle, offers=offers)
    assert "offer" in str(with_offers["Within"]["properties"]["column"])


def test_playlists_variants_sizes_and_features_are_those_of_the_service(bundle: Bundle) -> None:
    playlists = {"books": {}, "films": {}}
    variants = [{"name": "a", "playlist": "films"}, {"name": "b", "playlist": "default"}]
    experiments = {"shelf": {"playlist": "books", "variants": variants}}
    found = schemas(bundle, playlists=playlists, experiments=experiments, limits={"max_k": 20})
    request = found["RecommendRequest"]["properties"]
    assert request["playlist"]["enum"] == ["default", "books", "films"]
    assert request["variant"]["enum"] == [None, "a", "b"]
    assert request["k"]["anyOf"][0]["maximum"] == 20
    assert request["user_features"]["anyOf"][0]["properties"] == {}
    assert request["k"]["description"].startswith("Number of items"), "descriptions stay"
    assert schemas(bundle)["SimilarRequest"]["properties"]["k"]["anyOf"][0]["maximum"] == 300


def test_what_the_description_allows_and_forbids_is_so(bundle: Bundle) -> None:
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7))

    def status(body: dict[str, Any], path: str = "/v1/recommend") -> int:
        return call(app, "POST", path, json=body).status_code

    assert status({"history": [17.0, 27], "k": 3.0, "context": {"age": 20.0, "timestamp_ms": 5.0}}) == 200
    assert [status({"k": value}) for value in (3.5, True, "3", 1e300)] == [422] * 4
    assert [status({"history": [value]}) for value in (17.5, True, 1e300)] == [422] * 3
    assert status({"history": [17], "history_timestamps_ms": [1, 2]}) == 409
    assert status({"variant": "a"}) == 409
    assert status({"deadline_ms": 49}) == 422 and status({"deadline_ms": 60_000}) == 200
    assert status({"item_id": 17.0, "k": 2}, "/v1/similar") == 200
    assert call(app, "DELETE", "/v1/history").status_code == 405
    histories = [call(app, "GET", path) for path in ("/v1/history?user_id=1003", "/v1/users/1003/history")]
    assert histories[0].status_code == 200 and histories[0].json() == histories[1].json()


@pytest.mark.parametrize("name", ["RecommendRequest", "SimilarRequest", "Context", "Within", "Place"])
def test_bounds_are_in_words_of_json_schema(bundle: Bundle, name: str, tmp_path: Path) -> None:
    offers = {"file": str(write_offers(bundle, tmp_path / "offers.parquet")), "price_column": "price"}
    properties = schemas(bundle, offers=offers)[name]["properties"]

    def words(part: Any) -> set[str]:
        if isinstance(part, dict):
            return set(part) | {word for value in part.values() for word in words(value)}
        return {word for value in part for word in words(value)} if isinstance(part, list) else set()

    assert not words(properties) & {"ge", "le", "gt", "lt"}
