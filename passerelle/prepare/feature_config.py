"""What a TOML file says about one feature of items or users."""

from typing import Annotated, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, model_validator

from passerelle.config import Config
from passerelle.dataset import FeatureKind, Scaling
from passerelle.prepare.timestamps import TimestampUnit, check_timestamp_format


def regex(pattern: str) -> str:
    """Returns the pattern, if it is one of RE2.

    Raises:
        ValueError: it is not.
    """
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from None
    return pattern


def _regex_with_value(pattern: str) -> str:
    if "(?P<value>" not in regex(pattern):
        raise ValueError(r"name the part to keep with (?P<value>...), as in \((?P<value>\d{4})\)$")
    return pattern


class FeatureConfig(Config):
    """One feature of items or users."""

    kind: FeatureKind
    """`categorical` text, `multi_categorical` list of texts, `numeric` float64, `text` for people and
    encoders,
    `vector` given by you (of a text, an image), `timestamp`, or `place` on Earth.
    """
    column: str | None = None
    """Column that holds it."""
    flags: tuple[str, ...] = ()
    """`multi_categorical` spread over one 0/1 column a value, instead of `column`; the
    columns' names are the values.
    """
    latitude: str | None = None
    """`place`: column of the latitude in degrees, instead of `column`."""
    longitude: str | None = None
    """`place`: column of the longitude in degrees."""
    separator: str | None = Field(default=None, min_length=1)
    """`multi_categorical` or `vector` in one text: what stands between two values."""
    extract: Annotated[str, AfterValidator(_regex_with_value)] | None = None
    """Regular expression (RE2) whose group `(?P<value>...)` is the feature; missing where it does not match.
    """
    from_events: Literal["last", "most_frequent"] | None = None
    """Take it from the event files' column: the last value by time, or the most frequent one
    (in a tie, the one met first).
    """
    scaling: Scaling = "standard"
    """`numeric`: networks are given it standardised, or, for what spans orders of magnitude, the
    logarithm of one more than it.
    """
    width: int | None = Field(default=None, gt=0)
    """`vector`: numbers in it."""
    timestamp_unit: TimestampUnit = "s"
    """`timestamp`: as for events."""
    timestamp_format: str | None = None
    """`timestamp`: as for events."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.kind == "place":
            if self.latitude is None or self.longitude is None or self.column or self.flags:
                raise ValueError("a place is given by latitude and longitude, which name a column each")
        elif self.latitude or self.longitude:
            raise ValueError("latitude and longitude make a feature of kind place")
        elif (self.column is None) == (not self.flags):
            raise ValueError("give either column or flags")
        if self.flags and (
            self.kind != "multi_categorical" or self.from_events or self.extract or self.separator
        ):
            raise ValueError(
                "flags make a multi_categorical feature of the table alone, without separator, extract or "
                "from_events"
            )
        return self

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> Self:
        of_kinds = {
            "separator": ("multi_categorical", "vector"),
            "scaling": ("numeric",),
            "width": ("vector",),
            "timestamp_unit": ("timestamp",),
            "timestamp_format": ("timestamp",),
        }
        for option, kinds in of_kinds.items():
            if option in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"{option} is for kind {' or '.join(kinds)}, not {self.kind}")
        if self.kind == "vector" and self.width is None:
            raise ValueError("a vector needs its width: the numbers in it")
        if self.kind in ("vector", "place") and (self.from_events or self.extract):
            raise ValueError(f"a {self.kind} comes from its table as it is, without extract or from_events")
        check_timestamp_format(self.timestamp_unit, self.timestamp_format)
        return self

    def columns(self) -> tuple[str, ...]:
        """Returns the columns that the feature is made from."""
        if self.latitude is not None and self.longitude is not None:
            return self.latitude, self.longitude
        return self.flags if self.column is None else (self.column,)
