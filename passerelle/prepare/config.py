"""The description of logs in a TOML file: files, columns, rows to keep, features."""

import codecs
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from passerelle.config import Config, load_config
from passerelle.errors import UserError
from passerelle.ids import ITEM_ID, USER_ID
from passerelle.prepare.feature_config import FeatureConfig, regex
from passerelle.prepare.timestamps import TimestampUnit, check_timestamp_format

IdType = Literal["int64", "string"]
ID_TYPES = {"int64": pa.int64(), "string": pa.string()}
PRESETS = Path(__file__).parent / "presets"

_CSV_ONLY = ("separator", "columns", "encoding", "quoting")


def _encoding(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError("unknown encoding; usual ones are utf-8, latin-1 and cp1252") from None


class TableConfig(Config):
    """Files of one shape, and how to read them."""

    files: tuple[str, ...]
    """Names or globs relative to the source folder, or absolute; a folder stands for the files in it.

    `x.csv` also finds `x.csv.gz` (or `.zst`, `.bz2`, `.xz`), and the other way round.
    """
    format: Literal["csv", "parquet", "jsonl"] = "csv"
    """`csv` is any text with one row a line, `jsonl` one JSON object a line."""
    separator: str = Field(default=",", min_length=1)
    """csv: what stands between two values; may be several characters, such as `::`."""
    columns: tuple[str, ...] | None = None
    """csv: column names of files without a header line; absent, the first line is the header."""
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"
    """csv: text encoding."""
    quoting: bool = True
    """csv: whether `"` encloses values that hold the separator or a new line."""
    null_values: tuple[str, ...] = ("",)
    """Texts that stand for a missing value."""

    @model_validator(mode="after")
    def _csv_options(self) -> Self:
        foreign = [name for name in _CSV_ONLY if name in self.model_fields_set]
        if self.format != "csv" and foreign:
            raise ValueError(f"{', '.join(foreign)}: only for format csv, not {self.format}")
        if len(self.separator.encode()) > 1 and self.quoting and self.format == "csv":
            raise ValueError(f"separator {self.separator!r} is more than one byte: set quoting = false")
        return self


class Condition(Config):
    """A condition on the rows to keep; a missing value meets none but `is_null`."""

    column: str
    """Column that is compared."""
    operator: Literal[">", ">=", "<", "<=", "==", "!=", "in", "matches", "not_matches", "is_null", "not_null"]
    """`matches` searches for a regular expression (RE2)."""
    value: float | str | tuple[str, ...] | None = None
    """Value to compare with: numbers compare as numbers, text as text (ISO dates are in order); a list for
    `in`.
    """

    @model_validator(mode="after")
    def _value_fits(self) -> Self:
        wanted: dict[str, tuple[type, ...]] = {
            "in": (tuple,),
            "matches": (str,),
            "not_matches": (str,),
            "is_null": (type(None),),
            "not_null": (type(None),),
        }
        if not isinstance(self.value, wanted.get(self.operator, (float, str))):
            raise ValueError(f"operator {self.operator} does not go with value {self.value!r}")
        if self.operator in ("matches", "not_matches"):
            regex(str(self.value))
        return self

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, float) else self.value
        return f"{self.column} {self.operator}" + ("" if value is None else f" {value}")


class EventsConfig(TableConfig):
    """Files of events: user, item, time and type."""

    user_id: str
    """Column of the user."""
    item_id: str
    """Column of the item."""
    timestamp: str
    """Column of the time."""
    timestamp_unit: TimestampUnit = "s"
    """Seconds, milliseconds or microseconds since 1970 (integers or fractions), or `iso`: ISO 8601 text or a
    date column, UTC where it names no offset.
    """
    timestamp_format: str | None = None
    """With `iso`: the text's own format, of %Y %m %d %H %M %S %f %z %b, such as `%d/%m/%Y %H:%M`."""
    event_type: str = "event"
    """Event type of the events of these files."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of one event of this type."""
    event_type_column: str | None = None
    """Column of the event type of each event, instead of `event_type`."""
    event_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """With `event_type_column`: weight of each type to keep; rows of other types are dropped and counted."""
    where: tuple[Condition, ...] = ()
    """Rows to keep: all conditions hold."""

    @model_validator(mode="after")
    def _events_options(self) -> Self:
        if not self.files:
            raise ValueError("files: name at least one")
        check_timestamp_format(self.timestamp_unit, self.timestamp_format)
        if (self.event_type_column is None) != (not self.event_weights):
            raise ValueError("event_type_column and event_weights go together")
        if self.event_type_column is not None and self.model_fields_set & {"event_type", "weight"}:
            raise ValueError(
                "event_type and weight do not go with event_type_column: put the weights in event_weights"
            )
        return self

    def weights(self) -> dict[str, float]:
        """Returns the weight of each event type of these files."""
        return dict(self.event_weights) if self.event_type_column else {self.event_type: self.weight}


class EntityConfig(TableConfig):
    """Table of items or of users, one row each; without files, features come from the events."""

    files: tuple[str, ...] = ()
    """As for events; absent, every feature comes from the events."""
    id: str | None = None
    """Column of the id."""
    features: dict[str, FeatureConfig] = Field(default_factory=dict)
    """Features by name."""

    @model_validator(mode="after")
    def _entity_options(self) -> Self:
        if bool(self.files) != (self.id is not None):
            raise ValueError("files and id go together")
        orphans = [
            name for name, feature in self.features.items() if not feature.from_events and not self.files
        ]
        if orphans:
            raise ValueError(
                f"features {', '.join(orphans)}: no files to take them from; name files, or set from_events"
            )
        for reserved in (ITEM_ID, USER_ID):
            if reserved in self.features:
                raise ValueError(f"features {reserved}: the name is taken")
        return self


class ContextConfig(Config):
    """Context features of events, which a request has too: a device, a position in the page."""

    features: dict[str, FeatureConfig] = Field(default_factory=dict)
    """Features by name: `categorical` or `numeric`, from columns of the event files."""

    @model_validator(mode="after")
    def _of_events_alone(self) -> Self:
        for name, feature in self.features.items():
            if feature.kind not in ("categorical", "numeric") or feature.from_events:
                raise ValueError(
                    f"features {name}: of kind categorical or numeric, from a column of the event files, "
                    "without from_events"
                )
        return self


class FiltersConfig(Config):
    """Which events are kept, in this order: duplicates, repeats, minimum counts."""

    drop_duplicates: bool = True
    """Keep one of the events with the same user, item, timestamp and type."""
    first_event_per_pair: bool = False
    """Keep only the first event of a (user, item) pair."""
    min_item_events: int = Field(default=1, ge=1)
    """Drop items with fewer events."""
    min_user_events: int = Field(default=1, ge=1)
    """Drop users with fewer events."""
    iterate: bool = True
    """Repeat the minimum counts until both hold (k-core); otherwise items once, then users once."""


class SourceConfig(Config):
    """Where a preset's files come from."""

    folder: str
    """Name of their folder under `$PASSERELLE_DATA`, `../shared/data` and the cache."""
    page: str
    """Web page of the owner."""
    instructions: str
    """What to fetch there, and which files to put in the folder."""
    url: str | None = None
    """Zip archive to download when the files are nowhere; only with `sha256`."""
    sha256: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if (self.url is None) != (self.sha256 is None):
            raise ValueError("url and sha256 go together")
        return self


class PrepareConfig(Config):
    """Everything `passerelle prepare` needs to know."""

    name: str
    """Name of the data set."""
    title: str | None = None
    """Item feature shown to people."""
    item_id_type: IdType
    """Type of the item ids in files, requests and answers."""
    user_id_type: IdType
    """Type of the user ids."""
    on_bad_rows: Literal["error", "drop"] = "error"
    """A row that cannot be understood stops everything, or is dropped and counted (a
    feature's bad value becomes missing).
    """
    source: SourceConfig | None = None
    events: tuple[EventsConfig, ...]
    """One or more groups of files, each with columns of its own."""
    items: EntityConfig = EntityConfig()
    """Table of items."""
    users: EntityConfig = EntityConfig()
    """Table of users."""
    context: ContextConfig = ContextConfig()
    """Context features of events."""
    filters: FiltersConfig = FiltersConfig()
    """Which events are kept."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if not self.events:
            raise ValueError("events: describe at least one group of files")
        if self.title is not None and self.title not in self.items.features:
            raise ValueError(
                f"title {self.title!r} is not an item feature; there are: "
                f"{', '.join(self.items.features) or 'none'}"
            )
        if twice := sorted(set(self.context.features) & set(self.users.features)):
            raise ValueError(f"context.features {twice[0]}: there is a user feature of this name")
        if len(self.event_types()) > 256:
            raise ValueError(f"{len(self.event_types())} event types, at most 256 are possible")
        return self

    def event_types(self) -> tuple[str, ...]:
        """Returns the names of the event types, in code order."""
        return tuple(dict.fromkeys(name for block in self.events for name in block.weights()))


def preset_names() -> list[str]:
    """Returns the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_prepare_config(preset_or_toml: str, overrides: Sequence[str] = ()) -> PrepareConfig:
    """Read a preset by its name, or a TOML file by its path.

    Raises:
        UserError: neither a preset nor a file, or the configuration is wrong.
    """
    if re.fullmatch(r"[\w-]+", preset_or_toml) and not Path(preset_or_toml).is_file():
        if preset_or_toml not in preset_names():
            near = difflib.get_close_matches(preset_or_toml, preset_names(), n=1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"presets are {', '.join(preset_names())}; or give the path of a TOML file"
            )
            raise UserError(f"{preset_or_toml}: no such preset; {hint}")
        return load_config(PrepareConfig, PRESETS / f"{preset_or_toml}.toml", overrides)
    return load_config(PrepareConfig, Path(preset_or_toml), overrides)
