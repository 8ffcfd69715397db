"""The OpenAPI description of one service: what its bundle and its configuration take, and nothing else.

The classes of requests describe every service.
Here ids get the type of the bundle's, columns and values those that filters may name, and features those
that the model reads.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from passerelle.bundle import Bundle
from passerelle.calendar_time import FIRST_TIMESTAMP_MS, LAST_TIMESTAMP_MS
from passerelle.column_types import is_list, is_text
from passerelle.dataset import FeatureKind
from passerelle.encoding import FeatureEncoding
from passerelle.id_map import IdMap
from serving.catalogue.columns import OPERATIONS
from serving.config import DEFAULT, ServingConfig
from serving.schemas.recommend import MAX_HISTORY_ITEMS

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}
_NUMBER: Schema = {"type": "number", "minimum": -1e30, "maximum": 1e30}
_INT64: Schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_TIME: Schema = {"type": "integer", "minimum": FIRST_TIMESTAMP_MS, "maximum": LAST_TIMESTAMP_MS}
_INTEGER_TEXT: Schema = {"type": "string", "pattern": "^-?[0-9]{1,18}$"}
_PLACE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["latitude", "longitude"],
    "properties": {
        "latitude": {"type": "number", "minimum": -90, "maximum": 90},
        "longitude": {"type": "number", "minimum": -180, "maximum": 180},
    },
}
_OF_OFFERS: Schema = {"type": "string", "pattern": r"^offer\..+$"}
_VALUED = ("Equals", "In", "Contains")


def describe(schema: Schema, bundle: Bundle, config: ServingConfig) -> Schema:
    """Returns the description of a service; `schema` is the one of its classes, which is altered."""
    parts = schema["components"]["schemas"]
    item_id, user_id = _id(bundle.item_ids), _id(bundle.user_ids)
    max_k = min(config.limits.max_k, bundle.manifest.num_items)
    event_type = {"enum": list(bundle.manifest.event_types)}
    variants = [one.name for experiment in config.experiments.values() for one in experiment.variants]
    for name in ("RecommendRequest", "SimilarRequest"):
        _set(parts, name, k=_optional({"type": "integer", "minimum": 1, "maximum": max_k}))
    _set(
        parts,
        "RecommendRequest",
        user_id=_optional(user_id),
        history=_optional({"type": "array", "items": item_id, "maxItems": MAX_HISTORY_ITEMS}),
        history_event_types=_optional({"type": "array", "items": event_type}),
        similar_to={"type": "array", "items": item_id, "maxItems": 100},
        playlist={"enum": list(dict.fromkeys([DEFAULT, *config.playlists]))},
        variant={"enum": [None, *dict.fromkeys(variants)]},
        user_features=_optional(_features(bundle.query_encoding.user)),
    )
    # Similar items depend on no features, and any are ignored.
    parts["ContextOfSimilar"] = copy.deepcopy(parts["Context"])
    _set(parts, "SimilarRequest", context={"$ref": "#/components/schemas/ContextOfSimilar"})
    _set(parts, "Context", features=_optional(_features(bundle.query_encoding.context)))
    item_ids = {"type": "array", "items": item_id, "maxItems": 100}
    _set(parts, "SimilarRequest", item_id=_optional(item_id), item_ids=item_ids)
    parts["SimilarRequest"]["oneOf"] = [
        {"required": ["item_id"], "properties": {"item_id": item_id, "item_ids": {"maxItems": 0}}},
        {"required": ["item_ids"], "properties": {"item_id": _NULL, "item_ids": {"minItems": 1}}},
    ]
    if "EventsRequest" in parts:
        _describe_events(parts, item_id, user_id, event_type)
    _describe_filters(parts, bundle, with_offers=config.offers is not None)
    _describe_parameters(schema, {"item_id": bundle.item_ids, "user_id": bundle.user_ids})
    return schema


def _describe_events(parts: Schema, item_id: Schema, user_id: Schema, event_type: Schema) -> None:
    _set(parts, "EventIn", user_id=user_id, item_id=item_id, event_type=_optional(event_type))
    _set(
        parts,
        "EventsRequest",
        user_id=_optional(user_id),
        item_id=_optional(item_id),
        event_type=_optional(event_type),
    )
    fields = ("event_id", "user_id", "item_id")
    parts["EventsRequest"]["oneOf"] = [
        {
            "required": ["events"],
            "properties": {
                "events": {"minItems": 1},
                **dict.fromkeys((*fields, "event_type", "timestamp_ms"), _NULL),
            },
        },
        {
            "required": list(fields),
            "properties": {
                "events": {"maxItems": 0},
                **{field: {"not": _NULL} for field in fields},
            },
        },
    ]


def _describe_filters(parts: Schema, bundle: Bundle, *, with_offers: bool) -> None:
    """Narrows each condition to the columns that it applies to, and removes conditions without any."""
    kinds = {feature.name: feature.kind for feature in bundle.manifest.item_features}
    for name in ("Equals", "In", "Range", "Contains", "Within", "Overlaps", "Present"):
        operation = name.lower()
        columns = [column for column, kind in kinds.items() if operation in OPERATIONS.get(kind, ())]
        if not columns and not with_offers:
            _remove(parts, name)
        elif name in _VALUED:
            _narrow_values(parts[name], bundle, columns, with_offers=with_offers)
        elif name == "Overlaps":
            _set(parts, name, start=_one_of(columns, with_offers), end=_one_of(columns, with_offers))
        else:
            _set(parts, name, column=_one_of(columns, with_offers))
    if "Range" in parts:
        parts["Range"]["anyOf"] = [
            {"required": [bound], "properties": {bound: {"not": _NULL}}} for bound in ("min", "max")
        ]
    if "Within" in parts:
        categories = _of_kinds(kinds, "categorical", "multi_categorical")
        texts = [column for column in categories if is_text(_value_type(bundle, column))]
        if texts or with_offers:
            _set(parts, "RadiusBy", column=_one_of(texts, with_offers))
        else:
            _set(parts, "Within", radius_by=_NULL)


def _narrow_values(part: Schema, bundle: Bundle, columns: list[str], *, with_offers: bool) -> None:
    """Lets a condition on values name a column only together with values of its type."""
    by_type: dict[str, list[str]] = {}
    for column in columns:
        kind = _value_type(bundle, column)
        json_type = "string" if is_text(kind) else "boolean" if pa.types.is_boolean(kind) else "number"
        by_type.setdefault(json_type, []).append(column)

    def together(column: Schema, value: Schema) -> Schema:
        properties = part["properties"]
        if "values" in properties:
            return {"properties": {"column": column, "values": {**properties["values"], "items": value}}}
        return {"properties": {"column": column, "value": value}}

    alternatives = [together({"enum": names}, {"type": kind}) for kind, names in by_type.items()]
    if with_offers:
        alternatives.append(together(_OF_OFFERS, {"type": ["string", "boolean", "number"]}))
    part["anyOf"] = alternatives
    if "values" not in part["properties"]:
        part["properties"]["value"] = {"type": ["string", "boolean", "number"]}


def _value_type(bundle: Bundle, column: str) -> pa.DataType:
    """Returns the type of the values of a column, of the elements of lists."""
    kind = bundle.items.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind.value_type if is_list(kind) else kind


def _describe_parameters(schema: Schema, ids: Mapping[str, IdMap]) -> None:
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in ids and not pa.types.is_string(ids[parameter["name"]].type):
                    parameter["schema"] |= _INTEGER_TEXT


def _remove(parts: Schema, name: str) -> None:
    """Removes a condition from all unions that it is in."""
    reference = f"#/components/schemas/{name}"

    def clean(part: Any) -> None:
        if isinstance(part, dict):
            if "oneOf" in part and "discriminator" in part:
                part["oneOf"] = [one for one in part["oneOf"] if one.get("$ref") != reference]
                part["discriminator"]["mapping"].pop(name.lower(), None)
            for value in part.values():
                clean(value)
        elif isinstance(part, list):
            for value in part:
                clean(value)

    clean(parts)
    del parts[name]


def _id(ids: IdMap) -> Schema:
    return (
        {"type": ["string", "integer"]}
        if pa.types.is_string(ids.type)
        else {"anyOf": [_INT64, _INTEGER_TEXT]}
    )


def _features(encoding: FeatureEncoding) -> Schema:
    values: Mapping[FeatureKind, Callable[[int], Schema]] = {
        "categorical": lambda _: {"type": "string"},
        "multi_categorical": lambda _: {"type": "array", "items": {"type": "string"}},
        "numeric": lambda _: _NUMBER,
        "vector": lambda width: {"type": "array", "items": _NUMBER, "minItems": width, "maxItems": width},
        "timestamp": lambda _: _TIME,
        "place": lambda _: _PLACE,
    }
    properties = {column.name: _optional(values[column.kind](column.width)) for column in encoding.columns}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _of_kinds(kinds: Mapping[str, FeatureKind], *wanted: FeatureKind) -> list[str]:
    return [name for name, kind in kinds.items() if kind in wanted]


def _one_of(columns: Iterable[str], with_offers: bool) -> Schema:
    known: Schema = {"enum": list(columns)}
    return {"anyOf": [known, _OF_OFFERS]} if with_offers else known


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _set(parts: Schema, name: str, **properties: Schema) -> None:
    """Replaces the schema of some properties, and keeps their descriptions and defaults."""
    known = parts[name]["properties"]
    for key, schema in properties.items():
        kept = {word: known[key][word] for word in ("title", "description", "default") if word in known[key]}
        known[key] = {**kept, **schema}
