"""What the stages hand to each other, and what they need from Triton.

Shape legend: L history length, S seen items, D vector width, C candidates, K found by one source.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from passerelle.arrays import Float32Array, Int64Array

POPULARITY = "popularity"
POPULARITY_NEAR = "popularity_near"
PERSONAL = "personal"
SIMILAR = "similar"
PINNED = "pinned"

ENCODER_DOWN, RANKER_DOWN, EVENTS_DOWN = "query_encoder", "ranker", "events"
"""What an answer may have had to do without."""


class InferenceError(Exception):
    """A network could not answer: `code` is gRPC's name for why, `UNAVAILABLE` or `DEADLINE_EXCEEDED` for instance."""

    def __init__(self, what: str, code: str, message: str) -> None:
        super().__init__(f"{what}: {code}: {' '.join(message.split())}")
        self.what = what
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["InferenceError"], tuple[str, str, str]]:
        """So that it crosses from one process to another."""
        return type(self), (self.what, self.code, self.message)


class Inference(Protocol):
    """Runs the networks: Triton when serving, ONNX Runtime in a test."""

    async def infer(
        self, model: str, version: int, inputs: Mapping[str, npt.NDArray[Any]], timeout_s: float = 2.0
    ) -> dict[str, npt.NDArray[Any]]: ...

    async def max_batch_size(self, model: str, version: int, timeout_s: float = 2.0) -> int: ...

    async def ready(self, model: str, version: int) -> bool: ...


@dataclass(frozen=True)
class Query:
    """What the lookup knows of a user."""

    history_L: Int64Array
    """Item rows the query was made from, oldest first, at most `max_history`."""
    seen_S: Int64Array
    """Item rows to leave out of the answer."""
    query_D: Float32Array | None
    """None when too little is known of the user, or the network does not answer."""
    ignored_history: int
    encode_ms: float
    degraded: tuple[str, ...] = ()
    """What was left out because it does not work: `query_encoder`, `events`."""
    identity: str | None = None
    """What stands for the user in the log."""


@dataclass(frozen=True)
class Found:
    """What one source found, best first; the place in the array is the rank."""

    source: str
    rows_K: Int64Array
    scores_K: Float32Array


@dataclass(frozen=True)
class Candidates:
    """What all sources found, each item once."""

    rows_C: Int64Array
    scores_C: Float32Array
    """Inner products with the query, best first; without a query, the score of the source that gave the item its place."""
    found: tuple[Found, ...]
    mixed: bool = False
    """Several sources took turns, whose scores cannot be compared: the order of `rows_C` counts."""
    fallback: str | None = None
    """Named where the user got something else than what is personal."""
    offers: tuple[dict[str, Any] | None, ...] | None = None
    """[C] the best offer of each; None where there are no offers."""
    num_found: int | None = None
    """So many the sources found, which stand first; those after them fill the answer up, and come after them whatever their scores."""
