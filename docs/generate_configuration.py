"""Write docs/configuration.md, every setting of a recipe and of a description of logs, from the docstrings of their fields.

python docs/generate_configuration.py          # or: make docs
python docs/generate_configuration.py --check  # exit status 1 when the file is not what would be written
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import write_or_check

from passerelle.config import Config
from passerelle.prepare.config import Condition, EntityConfig, EventsConfig, FiltersConfig, PrepareConfig
from passerelle.prepare.feature_config import FeatureConfig
from serving.config import (
    ColdStart,
    Experiment,
    LimitsConfig,
    LiveEventsConfig,
    LogConfig,
    Offers,
    Playlist,
    Rules,
    SourceConfig,
    TracingConfig,
    Variant,
)
from serving.ordering_config import Boost, Cap, Mixing, Mmr, OrderingConfig, Pin
from training.config import Recipe, load_recipe, recipe_names

TARGET = Path(__file__).parent / "configuration.md"
INTRODUCTION = """\
# Configuration

Written by `make docs` from the docstrings of `training/config.py`, `training/model_config.py`, `passerelle/splits.py`,
`passerelle/prepare/config.py`, `passerelle/prepare/feature_config.py`, `serving/config.py` and `serving/ordering_config.py`: edit those,
not this file.

Every setting stands in a TOML file, and those of a section may be given anew with `--set section.key=value`, as often as needed. The
value is TOML (`--set model.dim=128`, `--set "model.distance_slopes=[0.5, 0.03]"`), and a bare word is a text
(`--set loss.kind=sampled`). An unknown key and a value out of range are errors, and so is an option of `[items]`, `[objective]`, `[loss]`
or `[split]` that the others leave without effect. How to use them is in [training.md](training.md) and [serving.md](serving.md).

## A recipe

What `passerelle train` takes. A file of your own starts from the defaults here, not from another recipe: copy one of
`training/recipes/`. In the columns of the recipes is what they set.
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

What `passerelle serve --config` takes. Conditions (`filters`, `when`) are written as in requests.
"""
SERVING_TABLES: tuple[tuple[str, type[Config]], ...] = (
    ("`[playlists.NAME]`", Playlist),
    ("`[[playlists.NAME.sources]]`, `[[cold_start.sources]]`", SourceConfig),
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
        return "condition"
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


def cell(text: str) -> str:
    """As it stands in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def value(of: Any) -> str:
    """A default, in TOML; empty for none."""
    return "" if of is None or of in ([], {}) else f"`{json.dumps(of)}`"


def table(model: type[Config], recipes: dict[str, dict[str, Any]] | None = None) -> Iterator[str]:
    """The lines of one table: a setting each, with what recipes set it to."""
    recipes = recipes or {}
    schema = model.model_json_schema()
    yield (
        "| "
        + " | ".join(["Key", "What may be written", "Default", *(f"`{name}`" for name in recipes), "Meaning"])
        + " |"
    )
    yield "|---|---|---|" + "---|" * len(recipes) + "---|"
    for key, field in schema["properties"].items():
        if key in PRESETS_ALONE:
            continue
        nested = "$ref" in field and "properties" in schema["$defs"][field["$ref"].rpartition("/")[2]]
        default = (
            "required" if key in schema.get("required", ()) else "" if nested else value(field.get("default"))
        )
        set_to = (
            value(values[key]) if values[key] != field.get("default") else "" for values in recipes.values()
        )
        assert "description" in field, f"{model.__name__}.{key} has no docstring"
        meaning = cell(field["description"])
        yield (
            "| "
            + " | ".join([f"`{key}`", cell(kind(field, schema.get("$defs", {}))), default, *set_to, meaning])
            + " |"
        )


def page() -> str:
    """The whole page."""
    recipes = {name: load_recipe(name).model_dump(mode="json") for name in recipe_names()}
    parts = [INTRODUCTION]
    for section, field in Recipe.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, Config)
        parts.append(f"\n### `[{section}]`\n\n{field.annotation.__doc__}\n\n")
        parts.extend(
            f"{line}\n"
            for line in table(field.annotation, {name: recipe[section] for name, recipe in recipes.items()})
        )
    for introduction, tables in ((LOGS, LOG_TABLES), (SERVING, SERVING_TABLES)):
        parts.append(introduction)
        for title, model in tables:
            parts.append(f"\n### {title}\n\n{model.__doc__}\n\n")
            parts.extend(f"{line}\n" for line in table(model))
    return "".join(parts)


if __name__ == "__main__":
    write_or_check(TARGET, page())
