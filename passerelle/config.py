"""Configuration: pydantic models read from TOML, with `section.key=value` overrides; an unknown key is an error."""

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo

from passerelle.errors import UserError


class Config(BaseModel):
    """Base of every configuration and manifest section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


_GIVEN = "given"


def refuse_idle(config: Config, info: ValidationInfo, readers: dict[str, tuple[bool, str]]) -> None:
    """For validators: an option that the others leave without effect keeps its default, where a user gives it (`validate`).

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


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        UserError: the file is missing, is not UTF-8 or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
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
    """What a user typed: a TOML value, or else a text.

    >>> plain_value("3"), plain_value("['a', 'b']"), plain_value("mobile")
    (3, ['a', 'b'], 'mobile')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested `values` with each `section.key=value` applied; values are TOML, bare words are strings.

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
        given: by a user, and not recorded by us, perhaps in an older version: options without effect are refused.

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
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known)) or 'nothing'}"
        return f"{key}: unknown key; {hint}{more}"
    got = (
        "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", got {first['input']!r}"
    )
    return f"{key or 'configuration'}: {first['msg'].removeprefix('Value error, ')}{got}{more}"


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Returns the fields of the model at `path`, through lists, maps, optional sections and discriminated unions."""
    annotation: Any = model
    for part in path:
        models = list(_models_in(annotation))
        field = models[0].model_fields.get(str(part)) if len(models) == 1 else None
        tagged = next((each for each in models if _has_tag(each, part)), None) if len(models) > 1 else None
        # else the part is an index of a list or a key of a map, whose elements the annotation already names
        annotation = field.annotation if field is not None else tagged or annotation
    return list(dict.fromkeys(name for found in _models_in(annotation) for name in found.model_fields))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models_in(part)


def _has_tag(model: type[BaseModel], tag: int | str) -> bool:
    """Returns whether the model stands for `tag` in a discriminated union."""
    return any(
        get_origin(field.annotation) is Literal and tag in get_args(field.annotation)
        for field in model.model_fields.values()
    )


def load_config(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a TOML file into `model` with `--set` overrides applied.

    Raises:
        UserError: see `read_toml`, `apply_overrides` and `validate`.
    """
    return validate(model, apply_overrides(read_toml(path), overrides), str(path), given=True)
