"""What bodies of requests are made of. Whatever comes, little is said of what is wrong with it: a long list of mistakes costs seconds."""

from typing import Annotated, Any, TypeVar

from pydantic import FailFast, model_validator

from passerelle.config import Config

T = TypeVar("T")


class _First(FailFast):
    """`FailFast`, which cannot stand in a union as it has no hash."""

    __hash__ = object.__hash__


Several = Annotated[tuple[T, ...], _First()]
"""A list, of which the first mistake is told."""
_STRANGERS = 20
"""So many unknown fields are named."""


class RequestModel(Config):
    """A part of a body."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > len(cls.model_fields) + _STRANGERS:
            raise ValueError(f"there are {len(given)} fields, known are {', '.join(cls.model_fields)}")
        return given
