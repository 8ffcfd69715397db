"""Bodies that are no JSON: 422 with the position, never 400 or 500."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request

from serving.api.json_bodies import JsonRequest, JsonRoute
from tests.support.asgi import call


def parsed(body: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return asyncio.run(JsonRequest({"type": "http", "headers": []}, receive).json())


@pytest.mark.parametrize(
    "value", [None, True, 0, -1, 2**70, 1.5, 1e300, "é\u2028", [], {}, [{"a": [1, {"b": "c"}]}]]
)
def test_json_is_parsed_as_by_the_standard_library(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parsed(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("body", "message", "position"),
    [
        (b'{"a": }', "expected value", 6),
        (b'{\n"a": 1\n}\n x', "trailing characters", 12),
        (b"[NaN]", "expected value", 1),
        (b'"\\ud800"', "unexpected end of hex escape", 7),
        (b'"\xff"', "invalid unicode code point", 1),
        (b"[" * 300, "recursion limit exceeded", 201),
        (b"1" * 5000, "number out of range", 4301),
        (b"", "EOF while parsing a value", 0),
    ],
)
def test_what_is_no_json_is_named_with_its_position(body: bytes, message: str, position: int) -> None:
    with pytest.raises(json.JSONDecodeError, match=message) as error:
        parsed(body)
    assert error.value.pos == position


def test_a_route_reads_its_body_with_this_parser() -> None:
    app = FastAPI()
    app.router.route_class = JsonRoute
    seen: list[type[Request]] = []

    @app.post("/")
    async def take(given: dict[str, int], request: Request) -> int:
        seen.append(type(request))
        return given["a"]

    assert call(app, "POST", "/", json={"a": 3}).json() == 3
    answer = call(app, "POST", "/", content=b"[" * 1000, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", 201]
    assert seen == [JsonRequest]
