"""Base classes of request bodies.

Errors of large invalid bodies are cut short: a long list of them would cost seconds.
"""

from typing import Annotated, Any, TypeVar

from pydantic import FailFast, model_validator

from passerelle.config import Config

T = TypeVar("T")


class _First(FailFast):
    """`FailFast` with a hash, without which it cannot stand in a union."""

    __hash__ = object.__hash__


Several = Annotated[tuple[T, ...], _First()]
"""A list; validation ends with its first error."""
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
