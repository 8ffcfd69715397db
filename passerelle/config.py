"""Configuration: pydantic models read from TOML, with `section.key=value` overrides; an unknown key is an
error.
"""

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from passerelle.errors import UserError


class Config(BaseModel):
    """Base of every configuration and manifest section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


_GIVEN = "given"


def refuse_idle(config: Config, info: ValidationInfo, readers: dict[str, tuple[bool, str]]) -> None:
    """Check, in a validator, that an option without effect keeps its default
    where a user gives it (`validate`).

    Args:
        readers: option -> whether anything reads it, and what would have to hold.

    Raises:
        ValueError: one was set in vain.
    """
    if not (info.context or {}).get(_GIVEN):
        return
    for name, (is_read, needed) in readers.items():
        value = getattr(config, name)
        if not is_read and value != type(config).model_fields[name].default:
            shown = value if isinstance(value, bool | int | float) else str(value)
            raise ValueError(f"{name} = {shown!r} has no effect without {needed}")


def kind_or(default: str) -> BeforeValidator:
    """Returns a validator of a union discriminated by `kind`: a bare text is the kind, a
    table without one has the default.
    """

    def with_kind(value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": default, **value} if isinstance(value, dict) else value

    return BeforeValidator(with_kind)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        UserError: the file is missing, is not UTF-8 or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def _parse_override(override: str) -> tuple[list[str], Any]:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write it as section.key=value")
    return keys, plain_value(text)


def plain_value(text: str) -> Any:
    """Returns the value of a text that a user typed: a TOML value, or else the text.

    >>> plain_value("3"), plain_value("['a', 'b']"), plain_value("mobile")
    (3, ['a', 'b'], 'mobile')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns a copy of nested `values` with each `section.key=value` applied; values
    are TOML, bare words are strings.

    >>> apply_overrides({"loss": {"num_negatives": 256}}, ["loss.num_negatives=64", "loss.kind=full"])
    {'loss': {'num_negatives': 64, 'kind': 'full'}}

    Raises:
        UserError: an override has no `=`, or goes through something that is not a section.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for override in overrides:
        keys, value = _parse_override(override)
        section = result
        for depth, key in enumerate(keys[:-1]):
            nested = section.get(key, {})
            if not isinstance(nested, dict):
                raise UserError(f"--set {override}: {'.'.join(keys[: depth + 1])} is a value, not a section")
            section[key] = nested = dict(nested)
            section = nested
        section[keys[-1]] = value
    return result


def validate(model: type[C], values: Any, where: str, *, given: bool = False) -> C:
    """Build `model` from plain values, turning pydantic's report into one line.

    Args:
        given: by a user, and not recorded by us, perhaps in an older version:
            options without effect are refused.

    Raises:
        UserError: naming `where`, the key, what is wrong with it, and the nearest known key.
    """
    try:
        return model.model_validate(values, context={_GIVEN: given})
    except ValidationError as failure:
        raise UserError(f"{where}: {_one_line(model, failure)}") from None


def _one_line(model: type[Config], failure: ValidationError) -> str:
    errors = failure.errors(include_url=False)
    # a misspelt key is also reported as the right one missing: the misspelling tells more
    first = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    found = _locate(model, first["loc"])
    key = ".".join(found.keys)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: {_unknown_key(_locate(model, first['loc'][:-1]), found.keys[-1])}{more}"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        *others, last = context["expected_tags"].split(", ")
        key = f"{key}.{context['discriminator'].strip(chr(39))}"
        return f"{key}: Input should be {', '.join(others)} or {last}, got {context['tag']!r}{more}"
    got = (
        "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", got {first['input']!r}"
    )
    return f"{key or 'configuration'}: {first['msg'].removeprefix('Value error, ')}{got}{more}"


def _unknown_key(section: "_Location", name: str) -> str:
    """Returns the message for a key that a section does not have, with the key that may be meant."""
    if section.kind is not None and (
        kinds := [kind for kind, keys in section.others.items() if name in keys]
    ):
        return f"goes with kind = {' or '.join(map(repr, kinds))}, not with {section.kind!r}"
    near = difflib.get_close_matches(name, section.known, n=1)
    known = ", ".join(sorted(section.known)) or "nothing"
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {known}"


@dataclass(frozen=True)
class _Location:
    """Where in a configuration an error is."""

    keys: list[str]
    """As the user wrote them: without the tags that pydantic adds for unions."""
    known: list[str]
    """Fields that may stand there; empty where it is no section."""
    kind: str | None
    """In a discriminated union: which of its models it is."""
    others: dict[str, list[str]]
    """The fields of the other models of that union."""


def _locate(model: type[BaseModel], path: tuple[int | str, ...]) -> _Location:
    """Follow the path of an error through lists, maps, optional sections and discriminated unions."""
    annotation: Any = model
    keys: list[str] = []
    kind: str | None = None
    others: dict[str, list[str]] = {}
    for part in path:
        models = _models_in(annotation)
        tagged = {tag: found for found in models for tag in _tags_of(found)} if len(models) > 1 else {}
        if part in tagged:
            kind, annotation = str(part), tagged[str(part)]
            others = {tag: list(found.model_fields) for tag, found in tagged.items() if tag != kind}
            continue
        keys.append(str(part))
        # a part that is no field is an index of a list or a key of a map: the annotation names its elements
        field = next(
            (found.model_fields[str(part)] for found in models if str(part) in found.model_fields), None
        )
        if field is not None:
            annotation, kind, others = field.annotation, None, {}
    known = dict.fromkeys(name for found in _models_in(annotation) for name in found.model_fields)
    return _Location(keys, list(known), kind, others)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _tags_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Returns the values of the field that tells this model from the others of a union."""
    field = next((model.model_fields[name] for name in ("kind", "op") if name in model.model_fields), None)
    return () if field is None else tuple(str(tag) for tag in get_args(field.annotation))


def load_config(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a TOML file into `model` with `--set` overrides applied.

    Raises:
        UserError: see `read_toml`, `apply_overrides` and `validate`.
    """
    return validate(model, apply_overrides(read_toml(path), overrides), str(path), given=True)
