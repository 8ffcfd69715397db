"""Base classes of request bodies.

Errors of large invalid bodies are cut short: a long list of them would cost seconds.
"""

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    PlainSerializer,
    SerializationInfo,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from passerelle.calendar_time import FIRST_TIMESTAMP_MS, LAST_TIMESTAMP_MS
from passerelle.column_types import MAX_EXACT_FLOAT
from passerelle.config import Config

T = TypeVar("T")


class _First(FailFast):
    """`FailFast` with a hash, without which it cannot stand in a union."""

    __hash__ = object.__hash__


Several = Annotated[tuple[T, ...], _First()]
"""A list; validation ends with its first error."""


def _whole(value: float) -> int:
    if not value.is_integer() or abs(value) > MAX_EXACT_FLOAT:
        raise ValueError("is no whole number")
    return int(value)


WholeFloat = Annotated[StrictFloat, AfterValidator(_whole)]
"""`7.0`, which is an integer for JSON Schema, and for clients whose numbers are all floating-point ones."""


def _without_point(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_number(low: int, high: int) -> Any:
    """Returns the type of whole numbers within bounds, both included."""
    return Annotated[StrictInt, Field(ge=low, le=high), BeforeValidator(_without_point)]


if TYPE_CHECKING:
    TimestampMs = int
    ExternalId = int | str
else:
    ExternalId = Annotated[StrictInt | StrictStr | WholeFloat, Field(union_mode="left_to_right")]
    TimestampMs = whole_number(FIRST_TIMESTAMP_MS, LAST_TIMESTAMP_MS)
    """Milliseconds since the epoch, of the years 1 to 9999, as `prepare` takes them."""
MAX_SAFE_INTEGER = int(MAX_EXACT_FLOAT)
"""Above, a JavaScript client reads another number than the one in the JSON."""
IDS_AS_TEXT = "ids_as_text"
"""Key of the context of a serialization: all ids of an answer are text."""


def _answered_id(value: int | str, info: SerializationInfo) -> int | str:
    as_text = bool(info.context and info.context.get(IDS_AS_TEXT))
    return str(value) if as_text or (isinstance(value, int) and abs(value) > MAX_SAFE_INTEGER) else value


AnswerId = Annotated[ExternalId, PlainSerializer(_answered_id, when_used="json")]
"""An id in an answer, as text where it does not fit a number of JavaScript."""
MAX_K = 10_000
"""Maximum number of items of an answer, whatever the configuration says."""
_MAX_UNKNOWN_FIELDS = 20
"""Maximum number of unknown fields that errors name."""


class RequestModel(Config):
    """A body, or an object in a body."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > len(cls.model_fields) + _MAX_UNKNOWN_FIELDS:
            raise ValueError(f"there are {len(given)} fields, known are {', '.join(cls.model_fields)}")
        return given
