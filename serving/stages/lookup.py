"""First stage: from a user or a history to one query vector.

Shape legend: B batch (1 here), L history length, P padded length, D vector width, R item rows (special rows
included).
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from passerelle.arrays import Float32Array, Int64Array
from passerelle.bundle import QUERY_ENCODER, Bundle, History
from passerelle.event_types import event_type_codes
from passerelle.id_map import UNKNOWN_ROW, Id
from passerelle.request_features import encode_values
from serving.config import ServingConfig
from serving.events.base import EventStore
from serving.schemas.recommend import RecommendRequest
from serving.stages.types import ENCODER_DOWN, Query, RequestTime
from serving.stages.user_history import UserHistories, UserHistory
from serving.triton.inference import INFER_TIMEOUT_S, Inference, InferenceError

SHORTEST_BUCKET = 16
EVENTS_SHARE, ENCODER_SHARE = 0.3, 0.6
"""Shares of the remaining time: a component that fails leaves time for an answer without it."""

logger = logging.getLogger(__name__)


def bucket_length(length: int, max_history: int) -> int:
    """Returns the length that a history is padded to: a power of two, at most `max_history`.

    Few different shapes let Triton merge requests into batches.

    >>> [bucket_length(length, 200) for length in (1, 16, 17, 100, 129, 200)]
    [16, 16, 32, 128, 200, 200]
    """
    bucket = SHORTEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, max_history)


class EmbeddingLookup:
    """Gathers the item vectors of a history and runs the query encoder on them.

    Args:
        bundle: vectors, id maps and stored histories.
        inference: runs the query encoder.
        version: version of the query encoder.
        config: which users are cold, and how long the event store may take.
        events: live events; None where they are not kept.

    Raises:
        UserError: the rule for cold users names an event type that the model does not know.
    """

    def __init__(
        self,
        bundle: Bundle,
        inference: Inference,
        version: int,
        config: ServingConfig | None = None,
        events: EventStore | None = None,
    ) -> None:
        self._bundle = bundle
        self._vectors_RD = np.asarray(bundle.history_vectors_RD)
        self._inference = inference
        self._version = version
        config = config or ServingConfig()
        self._cold = config.cold_start
        self._histories = UserHistories(bundle, config, events)
        self._cold_types = event_type_codes(
            self._cold.min_events_of, bundle.manifest.event_types, "cold_start.min_events_of"
        )

    async def run(
        self, request: RecommendRequest, request_time: RequestTime, timeout_s: float = INFER_TIMEOUT_S
    ) -> Query:
        """Returns the query of the request's history, else of its user; without a vector for cold users.

        Raises:
            UserError: an id is not of the catalogue's type, an event type does not exist, or the model does
                not read a feature.
        """
        started = time.perf_counter()
        known = await self._histories.of_request(request, request_time, EVENTS_SHARE * timeout_s)
        newest = History(*(values_L[-self._bundle.manifest.max_history :] for values_L in known.history))
        seen_S = self._bundle.seen(known.history) if request.exclude_seen else np.empty(0, dtype=np.int64)
        features = self._features(request, known.user_row)
        without_vector = Query(
            newest.item_rows_L, seen_S, None, known.ignored, 0.0, known.degraded, known.pseudonym
        )
        if self._is_cold(known):
            return without_vector
        encoding = time.perf_counter()
        encoder_timeout_s = ENCODER_SHARE * (timeout_s - (encoding - started))
        try:
            query_D = await self._encode(newest, features, request_time, encoder_timeout_s)
        except InferenceError as error:
            logger.warning("answering without the query encoder: %s", error)
            return replace(without_vector, degraded=(*known.degraded, ENCODER_DOWN))
        return replace(without_vector, query_D=query_D, encode_ms=1e3 * (time.perf_counter() - encoding))

    async def history(self, user_id: Id, limit: int) -> History:
        """Returns the newest known events of a user, oldest first, at most `limit`.

        Raises:
            UserError: the id is not of the type of this bundle's users.
        """
        known = await self._histories.of_user(user_id, INFER_TIMEOUT_S)
        return History(*(values_L[-limit:] for values_L in known.history))

    async def ready(self) -> bool:
        """Returns whether Triton serves this version of the query encoder."""
        return await self._inference.ready(QUERY_ENCODER, self._version)

    def _is_cold(self, known: UserHistory) -> bool:
        """Returns whether the serving file's rule counts the user as cold."""
        count = len(known.history.item_rows_L)
        if known.given:
            return count < self._cold.min_request_items
        if not count or not self._cold.min_events_of:
            return count < max(1, self._cold.min_events)
        num_types = len(self._bundle.manifest.event_types)
        counts = np.bincount(known.history.event_types_L, minlength=num_types)[self._cold_types]
        return all(
            count < min_count
            for count, min_count in zip(counts, self._cold.min_events_of.values(), strict=True)
        )

    def _features(self, request: RecommendRequest, user_row: int) -> dict[str, npt.NDArray[Any]]:
        """Returns user and context features as the query encoder takes them, zeros for unknown ones."""
        bundle, encoding = self._bundle, self._bundle.query_encoding
        inputs: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((1, width), np.int64 if name.endswith("codes") else np.float32)
            for name, width in encoding.widths().items()
        }
        if request.user_features is not None:
            given = encode_values(encoding.user, request.user_features, "user_features")
            inputs |= {"user_codes": given.codes_NS, "user_numbers": given.numbers_NF}
        elif (
            user_row != UNKNOWN_ROW
            and bundle.user_codes_US is not None
            and bundle.user_numbers_UF is not None
        ):
            codes_1S, numbers_1F = bundle.user_codes_US[[user_row]], bundle.user_numbers_UF[[user_row]]
            inputs |= {"user_codes": codes_1S.astype(np.int64), "user_numbers": np.asarray(numbers_1F)}
        if request.context.features is not None:
            given = encode_values(encoding.context, request.context.features, "context.features")
            inputs |= {"context_codes": given.codes_NS, "context_numbers": given.numbers_NF}
        return inputs

    async def _encode(
        self,
        history: History,
        features: Mapping[str, npt.NDArray[Any]],
        request_time: RequestTime,
        timeout_s: float,
    ) -> Float32Array:
        length = len(history.item_rows_L)
        padded = bucket_length(length, self._bundle.manifest.max_history)
        vectors_BPD = np.zeros((1, padded, self._vectors_RD.shape[1]), dtype=np.float32)
        vectors_BPD[0, padded - length :] = self._vectors_RD[history.item_rows_L]
        inputs = {
            "item_vectors": vectors_BPD,
            "mask": np.arange(padded)[None] >= padded - length,
            "event_types": _padded(history.event_types_L, padded),
            "timestamps_ms": _padded(history.timestamps_ms_L, padded),
            "query_timestamp_ms": np.array([[request_time.timestamp_ms]]),
            **features,
        }
        outputs = await self._inference.infer(QUERY_ENCODER, self._version, inputs, timeout_s)
        query_D = np.asarray(outputs["query"][0], dtype=np.float32)
        if not np.isfinite(query_D).all():
            raise InferenceError(QUERY_ENCODER, "INTERNAL", "a vector that is not finite")
        return query_D


def _padded(values_L: Int64Array, length: int) -> Int64Array:
    """Returns [1, length] with zeros on the left."""
    return np.concatenate([np.zeros(length - len(values_L), dtype=np.int64), values_L])[None]
