"""Invalid and hostile requests, from the OpenAPI schema and by hand."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

NASTY: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63 - 1,
    2**63,
    -(2**64),
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "7",
    "1e5",
    "NaN",
    "\x00",
    "\ud800",
    "商品 0",
    "é" * 5000,
    "' OR '1'='1",
    "'; DROP TABLE events; --",
    "../../../etc/passwd",
    "${jndi:ldap://x/y}",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "\r\nx-injected: yes",
    "‮evil",
    [],
    {},
    [[]],
    {"": None},
    [None] * 1000,
)


# Known users, but none of the reference: the events that a fuzzer records change what a user is shown.
LIKELY: dict[str, tuple[Any, ...]] = {
    "user_id": (1023, 1020, "1021", 4, None),
    "item_id": (7, 17, "27", 2997),
    "item_ids": ([], [7, 17], [27]),
    "similar_to": ([], [7, 17], [8]),
    "history": ([], [7, 17, 27], ["7", 8], None),
    "history_timestamps_ms": (None,),
    "history_event_types": (None,),
    "user_features": (None, {}),
    "features": (None, {}),
    "playlist": ("default", "books"),
    "variant": (None,),
    "event_type": ("view", None),
    "event_id": ("a", "b", "商品"),
    "k": (1, 5, 50),
    "deadline_ms": (None, 60_000),
    "filters": ([],),
}
"""Values of fields, by name, with which a request is answered and reaches more than the first check."""


def deep(depth: int) -> dict[str, Any]:
    """Returns a filter nested this deep."""
    tree: dict[str, Any] = {"op": "present", "column": "year"}
    for level in range(depth):
        tree = {"op": "not", "condition": tree} if level % 2 else {"op": "and", "conditions": [tree]}
    return tree


def filters(rng: random.Random, depth: int = 3) -> Any:
    """Returns a tree of conditions, mostly valid."""
    kind = rng.random()
    if depth and kind < 0.3:
        return {
            "op": rng.choice(["and", "or"]),
            "conditions": [filters(rng, depth - 1) for _ in range(rng.randint(0, 3))],
        }
    if depth and kind < 0.4:
        return {"op": "not", "condition": filters(rng, depth - 1)}
    column = rng.choice(["year", "genres", "kind", "title", "offer.price", "", "item_id", rng.choice(NASTY)])
    condition = {
        "op": rng.choice(["equals", "in", "range", "contains", "within", "overlaps", "present", "like", ""]),
        "column": column,
    }
    names = (
        "value",
        "values",
        "min",
        "max",
        "latitude",
        "longitude",
        "radius_km",
        "start",
        "end",
        "radius_by",
    )
    for name in rng.sample(names, rng.randint(0, 4)):
        condition[name] = rng.choice([rng.choice(NASTY), 1990, "Drama", ["film"], 48.85, 2.35, 5])
    return condition


def valid(schema: Any, definitions: dict[str, Any], rng: random.Random, depth: int = 0) -> Any:
    """Returns a value that a schema describes, or now and then one that it does not."""
    if rng.random() < 0.015:
        return copy.deepcopy(rng.choice(NASTY))
    if depth > 6:
        return None
    if "$ref" in schema:
        return valid(definitions[schema["$ref"].rpartition("/")[2]], definitions, rng, depth + 1)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            chosen = rng.choice(schema[several])
            if "properties" not in schema:
                return valid(chosen, definitions, rng, depth + 1)
            schema = narrowed(schema, chosen)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    match rng.choice(kind) if isinstance(kind, list) else kind:
        case "object":
            known = {
                name: rng.choice(LIKELY[name])
                if name in LIKELY and rng.random() < 0.93
                else valid(property_, definitions, rng, depth + 1)
                for name, property_ in schema.get("properties", {}).items()
                if name in schema.get("required", ()) or rng.random() < 0.4
            }
            if rng.random() < 0.03:
                known["unheard_of"] = 1
            return known
        case "array":
            return [
                valid(schema.get("items", {}), definitions, rng, depth + 1) for _ in range(rng.randint(0, 4))
            ]
        case "integer":
            return rng.choice([7, 17, 1023, rng.randint(-5, 400), 1_700_000_000_000])
        case "number":
            return rng.choice([0.5, rng.uniform(-200, 200)])
        case "boolean":
            return rng.random() < 0.5
        case "string":
            return rng.choice(
                ["default", "view", "7", "year", "genres", "Drama", "books", "x" * rng.randint(0, 200)]
            )
    return copy.deepcopy(rng.choice(NASTY))


def narrowed(schema: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of an object with what one of its alternatives says, too."""
    properties = {
        name: {**property_, **chosen.get("properties", {}).get(name, {})}
        for name, property_ in schema["properties"].items()
    }
    return {**schema, **chosen, "properties": properties}


def requests(
    openapi: dict[str, Any], count: int, seed: int
) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Yields method, path, body and headers of requests."""
    rng = random.Random(seed)
    definitions = openapi["components"]["schemas"]
    operations = [
        (method, path, what) for path, methods in openapi["paths"].items() for method, what in methods.items()
    ]
    posts = [one for one in operations if one[0] == "post"]
    for _ in range(count):
        method, path, what = rng.choice(posts if rng.random() < 0.85 else operations)
        for parameter in what.get("parameters", ()):
            value = str(rng.choice(NASTY)).encode("utf-8", "replace").decode()[:300]
            path = path.replace(
                "{" + parameter["name"] + "}", quote(value, safe="/" if rng.random() < 0.5 else "")
            )
        headers = {"content-type": "application/json"}
        body = b""
        if method == "post":
            content = valid(what["requestBody"]["content"]["application/json"]["schema"], definitions, rng)
            if isinstance(content, dict) and path.endswith(("recommend", "similar")) and rng.random() < 0.4:
                content["filters"] = [filters(rng) for _ in range(rng.randint(0, 3))]
            if isinstance(content, dict) and rng.random() < 0.01:
                content["filters"] = [deep(rng.choice([50, 500, 5000]))]
            if isinstance(content, dict) and rng.random() < 0.01:
                content["history"] = [rng.randint(0, 5000)] * rng.choice([1000, 100_001])
            body = encoded(content)
            if rng.random() < 0.05:
                body = mangled(body, rng)
        yield method.upper(), path, body, headers


def encoded(content: Any) -> bytes:
    """Returns JSON, also of values too deep for the encoder or unknown to JSON."""
    try:
        return json.dumps(content).encode()
    except RecursionError:
        return b'{"filters":[' + b'{"op":"not","condition":' * 5000 + b"1" + b"}" * 5000 + b"]}"


def mangled(body: bytes, rng: random.Random) -> bytes:
    """Returns the body cut short, with a byte inserted, doubled, or with a byte order mark."""
    position = rng.randrange(len(body) + 1)
    return rng.choice(
        [
            body[:position],
            body[:position] + bytes([rng.randrange(256)]) + body[position:],
            body + body,
            b"\xff\xfe" + body,
        ]
    )
