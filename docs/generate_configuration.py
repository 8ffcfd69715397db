"""Write docs/configuration.md, every setting of a recipe, a description of logs and a serving file.

The text is that of the fields' docstrings.

python docs/generate_configuration.py          # or: make docs
python docs/generate_configuration.py --check  # exit status 1 when the file is not what would be written
"""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pages import WIDTH, sentence_lines, write_or_check
from pydantic.fields import FieldInfo

from passerelle.config import Config
from passerelle.prepare.config import Condition, EntityConfig, EventsConfig, FiltersConfig, PrepareConfig
from passerelle.prepare.feature_config import FeatureConfig
from serving.config import (
    ColdStart,
    Experiment,
    LimitsConfig,
    LiveEventsConfig,
    LogConfig,
    Playlist,
    TracingConfig,
    Variant,
)
from serving.eligibility_config import Offers, Rules
from serving.ordering_config import Boost, Cap, Mixing, Mmr, OrderingConfig, Pin
from serving.source_config import SOURCE_MODELS
from training.config import Recipe, load_recipe, recipe_names

TARGET = Path(__file__).parent / "configuration.md"
INTRODUCTION = """\
# Configuration

Written by `make docs` from the docstrings of the settings: edit those, not this file.
They stand in `training/config.py`, `training/model_config.py`, `training/loss_config.py`,
`passerelle/splits.py`, `passerelle/prepare/config.py`, `passerelle/prepare/feature_config.py`,
`serving/config.py`, `serving/source_config.py`, `serving/eligibility_config.py` and
`serving/ordering_config.py`.

Settings are read from TOML files.
Those of a section can be overridden with `--set section.key=value`, as often as needed.
The value is TOML (`--set model.dim=128`, `--set "model.distance_slopes=[0.5, 0.03]"`), and a bare word is
a text (`--set loss.kind=sampled`).
An unknown key and a value out of range are errors.
So is an option of `[items]`, `[objective]`, `[loss]` or `[split]` that has no effect with the other options.
How to use them is in [training.md](training.md) and [serving.md](serving.md).

A setting is listed with what may be written, its default, and what the recipes `bert4rec`, `sasrec` and
`two_tower` set where that differs.

## A recipe

What `passerelle train` takes.
A file of your own starts from the defaults here, not from another recipe: copy one of `training/recipes/`.
"""
LOGS = """\

## A description of logs

What `passerelle prepare` takes.
"""
LOG_TABLES: tuple[tuple[str, type[Config]], ...] = (
    ("The file itself", PrepareConfig),
    ("`[[events]]`", EventsConfig),
    ("`[[events.where]]`", Condition),
    ("`[items]`, `[users]`", EntityConfig),
    ("`[items.features.NAME]`, `[users.features.NAME]`", FeatureConfig),
    ("`[filters]`", FiltersConfig),
)
SERVING = """\

## A serving file

What `passerelle serve --config` takes.
Conditions (`filters`, `when`) are written as in requests.
"""
SERVING_TABLES: tuple[tuple[str, type[Config]], ...] = (
    ("`[playlists.NAME]`", Playlist),
    *(
        (f'`[[playlists.NAME.sources]]`, `[[cold_start.sources]]` of `kind = "{kind}"`', model)
        for kind, model in SOURCE_MODELS.items()
    ),
    ("`[playlists.NAME.ordering]`", OrderingConfig),
    ("`[[playlists.NAME.ordering.boosts]]`", Boost),
    ("`[[playlists.NAME.ordering.caps]]`", Cap),
    ("`[[playlists.NAME.ordering.pins]]`", Pin),
    ("`[playlists.NAME.ordering.mixing]`", Mixing),
    ("`[playlists.NAME.ordering.mmr]`", Mmr),
    ("`[experiments.NAME]`", Experiment),
    ("`[[experiments.NAME.variants]]`", Variant),
    ("`[cold_start]`", ColdStart),
    ("`[rules]`", Rules),
    ("`[offers]`", Offers),
    ("`[events]`", LiveEventsConfig),
    ("`[limits]`", LimitsConfig),
    ("`[log]`", LogConfig),
    ("`[tracing]`", TracingConfig),
)
BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
PRESETS_ALONE = ("source",)


def kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What may be written, in words."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "oneOf" in schema:
        if schema["discriminator"]["propertyName"] == "op":
            return "condition"
        parts = [definitions[part["$ref"].rpartition("/")[2]] for part in schema["oneOf"]]
        names = [part["properties"]["kind"]["const"] for part in parts]
        return "source" if "personal" in names else ", ".join(f"`{name}`" for name in names)
    if "anyOf" in schema:
        return " or ".join(kind(part, definitions) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list: {kind(schema['items'], definitions)}"
    if schema["type"] == "object":
        return (
            "table"
            if "properties" in schema
            else f"table: a name and {kind(schema['additionalProperties'], definitions)}"
        )
    if schema["type"] == "string":
        return {"path": "path", "date-time": "date and time"}.get(schema.get("format", ""), "text")
    bounds = [words.format(f"{schema[name]:g}") for name, words in BOUNDS.items() if name in schema]
    return " ".join([schema["type"], ", ".join(bounds)]).rstrip()


def value(of: Any) -> str:
    """A default, in TOML, or its kind alone; empty for none."""
    if isinstance(of, dict) and "kind" in of:
        of = of["kind"]
    return "" if of is None or of in ([], {}) else f"`{json.dumps(_without_nulls(of))}`"


def _without_nulls(of: Any) -> Any:
    if isinstance(of, list):
        return [_without_nulls(part) for part in of]
    if isinstance(of, dict):
        return {key: _without_nulls(part) for key, part in of.items() if part is not None}
    return of


def settings(model: type[Config], recipes: dict[str, dict[str, Any]] | None = None) -> Iterator[str]:
    """The lines of a list: each setting with its type, its default, what recipes set, and its meaning."""
    schema = model.model_json_schema()
    for key, field in schema["properties"].items():
        if key in PRESETS_ALONE or "const" in field:
            continue
        assert "description" in field, f"{model.__name__}.{key} has no docstring"
        nested = "$ref" in field and "properties" in schema["$defs"][field["$ref"].rpartition("/")[2]]
        default = "" if nested else value(field.get("default"))
        notes = [
            kind(field, schema.get("$defs", {})),
            "required" if key in schema.get("required", ()) else f"default {default}" if default else "",
            *(
                f"{name}: {value(values[key]) or 'none'}"
                for name, values in (recipes or {}).items()
                if values[key] != field.get("default")
            ),
        ]
        yield from hanging(f"`{key}` ({'; '.join(note for note in notes if note)}):")
        yield from sentence_lines(field["description"], indent="  ")


def hanging(text: str) -> Iterator[str]:
    """The first lines of a list item."""
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def section(
    title: str, model: type[Config], recipes: dict[str, dict[str, Any]] | None = None
) -> Iterator[str]:
    """The lines of one section of a file."""
    yield from ("", f"### {title}", "")
    yield from sentence_lines(model.__doc__ or "")
    lines = list(settings(model, recipes))
    yield from ["", *lines] if lines else []


def recipe_sections(title: str, field: FieldInfo, recipes: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The lines of a section of a recipe: of a union, what it is, then a section for each kind."""
    models = kinds_of(field)
    if not models:
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, Config)
        yield from section(f"`[{title}]`", model, recipes)
        return
    if "." not in title:
        names = ", ".join(f"`{name}`" for name in models)
        default = field.get_default().kind
        set_to = [f"{name}: {value(v['kind'])}" for name, v in recipes.items() if v["kind"] != default]
        yield from ("", f"### `[{title}]`", "", *sentence_lines(field.description or ""), "")
        yield from hanging(f"`kind` ({'; '.join([names, f'default {value(default)}', *set_to])}):")
        yield "  The other settings depend on it."
    for name, of_union in models.items():
        of_kind = {recipe: values for recipe, values in recipes.items() if values["kind"] == name}
        yield from section(f"`[{title}]` with `kind = {json.dumps(name)}`", of_union, of_kind)
        for key, nested in of_union.model_fields.items():
            if kinds_of(nested):
                of_nested = {recipe: values[key] for recipe, values in of_kind.items()}
                yield from recipe_sections(f"{title}.{key}", nested, of_nested)


def kinds_of(field: FieldInfo) -> dict[str, type[Config]]:
    """Kind -> configuration of a union discriminated by `kind`; empty for any other field."""
    models = get_args(field.annotation) if field.discriminator == "kind" else ()
    return {model.model_fields["kind"].default: model for model in models}


def page() -> str:
    """The whole page."""
    recipes = {name: load_recipe(name).model_dump(mode="json") for name in recipe_names()}
    lines = [INTRODUCTION.rstrip("\n")]
    for name, field in Recipe.model_fields.items():
        of_recipes = {recipe: values[name] for recipe, values in recipes.items()}
        lines.extend(recipe_sections(name, field, of_recipes))
    for introduction, sections in ((LOGS, LOG_TABLES), (SERVING, SERVING_TABLES)):
        lines.append(introduction.rstrip("\n"))
        for title, model in sections:
            lines.extend(section(title, model))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_or_check(TARGET, page())
