"""What the stages hand to each other, and what they need from Triton.

Shape legend: L history length, S seen items, D vector width, C candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

POPULARITY = "popularity"
PERSONAL = "personal"
SIMILAR = "similar"


class Inference(Protocol):
    """Runs the networks: Triton when serving, ONNX Runtime in a test."""

    async def infer(self, model: str, version: int, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...

    async def max_batch_size(self, model: str, version: int) -> int: ...

    async def ready(self, model: str, version: int) -> bool: ...


@dataclass(frozen=True)
class Query:
    """What the lookup knows of a user."""

    history_L: Int64Array
    """Item rows the query was made from, oldest first, at most `max_history`."""
    seen_S: Int64Array
    """Item rows to leave out of the answer."""
    query_D: Float32Array | None
    """None when nothing is known of the user."""
    ignored_history: int
    encode_ms: float


@dataclass(frozen=True)
class Candidates:
    """What one source found, best first; the place in the array is the rank."""

    rows_C: Int64Array
    scores_C: Float32Array
    source: str
