"""Requests that a browser sends for a page of another site are refused: DNS rebinding and foreign origins."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.api.app import build_app
from serving.config import ServingConfig
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from tests.serving.conftest import recommender_of
from tests.support.asgi import call
from tests.support.inference import OnnxInference

SITE = {"origin": "https://shop.test"}


def app_of(bundle: Bundle, store: Any = None, host: str | None = "127.0.0.1", **limits: Any) -> Any:
    config = validate(ServingConfig, {"limits": limits}, "test")
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, config)
    return build_app(recommender, None if store is None else EventIntake(bundle, store), host=host)


def status(app: Any, method: str = "GET", path: str = "/v1/items/17", **headers: str) -> int:
    body = {"k": 1} if method == "POST" else None
    return call(app, method, path, headers=headers, json=body).status_code


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("LocalHost", 200),
        ("[::1]:8000", 200),
        ("shop.localhost:80", 200),
        ("evil.test", 403),
        ("evil.test:8000", 403),
        ("127.0.0.1.evil.test", 403),
        ("localhost.evil.test:8000", 403),
        ("192.168.1.5", 403),
        ("", 403),
    ],
)
def test_a_service_on_loopback_has_names_of_this_machine_only(
    bundle: Bundle, host: str, name: str, expected: int
) -> None:
    assert status(app_of(bundle, host=host), host=name) == expected


@pytest.mark.parametrize("host", [None, "0.0.0.0", "::", "192.0.2.7"])
def test_a_service_for_others_has_any_name_unless_some_are_configured(
    bundle: Bundle, host: str | None
) -> None:
    assert status(app_of(bundle, host=host), host="shop.test") == 200
    named = app_of(bundle, host=host, allowed_hosts=["Shop.test"])
    assert [status(named, host=name) for name in ("shop.test:80", "evil.test", "127.0.0.1")] == [
        200,
        403,
        403,
    ]


def test_probes_and_scrapers_ask_by_any_name(bundle: Bundle) -> None:
    app = app_of(bundle, host="0.0.0.0", allowed_hosts=["shop.test"])
    for path in ("/healthz", "/readyz", "/metrics"):
        assert status(app, path=path, host="10.1.2.3:8000") == 200
    assert status(app, path="/docs", host="10.1.2.3:8000") == 403


def test_configured_names_count_on_loopback_too(bundle: Bundle) -> None:
    named = app_of(bundle, allowed_hosts=["shop.test"])
    assert [status(named, host=name) for name in ("shop.test", "127.0.0.1:1", "evil.test")] == [200, 200, 403]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_pages_of_other_sites_change_nothing(bundle: Bundle, tmp_path: Path, host: str) -> None:
    store = SqliteEventStore(tmp_path / "events.sqlite")
    app = app_of(bundle, store, host)
    for origin, expected in (
        ("http://evil.test", 403),
        ("null", 403),
        ("http://localhost:9999", 403),
        ("http://localhost:8000", 200),
        ("https://localhost:8000", 200),
    ):
        given = {"host": "localhost:8000", "origin": origin}
        assert status(app, "DELETE", "/v1/users/1000", **given) == expected, origin
        assert status(app, "POST", "/v1/recommend", **given) == expected, origin
        assert status(app, "GET", "/v1/items/17", **given) == 200
    assert status(app, "DELETE", "/v1/users/1000", host="localhost") == 200, "a client that is no browser"
    asyncio.run(store.close())


def test_allowed_origins_may_send_requests(bundle: Bundle) -> None:
    one = app_of(bundle, allowed_origins=[SITE["origin"]])
    assert status(one, "POST", "/v1/recommend", host="localhost", **SITE) == 200
    assert status(one, "POST", "/v1/recommend", host="localhost", origin="https://evil.test") == 403
    every = app_of(bundle, allowed_origins=["*"])
    assert status(every, "POST", "/v1/recommend", host="localhost", origin="https://evil.test") == 200


def test_keys_make_both_checks_needless(bundle: Bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    app = app_of(bundle, api_keys_file=str(keys))
    page = {"host": "shop.test", "origin": "https://evil.test"}
    assert status(app, "POST", "/v1/recommend", authorization="Bearer secret", **page) == 200
    assert status(app, "POST", "/v1/recommend", **page) == 401
