"""First stage: from a user or a history to one query vector.

Shape legend: B batch (1 here), L history length, P padded length, D vector width, R item rows (special rows included).
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from passerelle.bundle import QUERY_ENCODER, Bundle, History
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, Id, IdMap
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.request_features import encode_values
from serving.schemas import RecommendRequest
from serving.stages import Float32Array, Inference, Int64Array, Query

SHORTEST_BUCKET = 16
ASSUMED_GAP_MS = 60_000
NO_HISTORY = History(*(np.empty(0, dtype=np.int64) for _ in History._fields))


def bucket_length(length: int, max_history: int) -> int:
    """Length a history is padded to: a power of two, so that Triton meets few shapes and can merge requests; at most `max_history`.

    >>> [bucket_length(length, 200) for length in (1, 16, 17, 100, 129, 200)]
    [16, 16, 32, 128, 200, 200]
    """
    bucket = SHORTEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, max_history)


class EmbeddingLookup:
    """Turns ids into rows, gathers the item vectors and lets the query encoder make one vector of them.

    Args:
        bundle: vectors, id maps and stored histories.
        inference: runs the query encoder.
        version: which version of it.
    """

    def __init__(self, bundle: Bundle, inference: Inference, version: int) -> None:
        self._bundle = bundle
        self._vectors_RD = np.asarray(bundle.history_vectors_RD)
        self._inference = inference
        self._version = version

    async def run(self, request: RecommendRequest, timestamp_ms: int) -> Query:
        """The query vector of the request's history, else of the user's stored one; none when neither holds a known item.

        Raises:
            UserError: an id is not of the catalogue's type, there is no such kind of event, or a feature is not one that the model reads.
        """
        history, user_row, ignored = self._history(request, timestamp_ms)
        newest = History(*(values_L[-self._bundle.manifest.max_history :] for values_L in history))
        seen_S = self._bundle.seen(history) if request.exclude_seen else np.empty(0, dtype=np.int64)
        if not len(history.item_rows_L):
            return Query(newest.item_rows_L, seen_S, None, ignored, 0.0)
        facts = self._facts(request, user_row)
        started = time.perf_counter()
        query_D = await self._encode(newest, facts, timestamp_ms)
        return Query(newest.item_rows_L, seen_S, query_D, ignored, 1e3 * (time.perf_counter() - started))

    def _history(self, request: RecommendRequest, timestamp_ms: int) -> tuple[History, int, int]:
        """The known items among those given or stored, the row of the user, and how many of the given ids are unknown."""
        user_row = UNKNOWN_ROW
        if request.user_id is not None:
            user_row = self._bundle.user_ids.row(_parsed(self._bundle.user_ids, request.user_id, "user_id"))
        if request.history is None:
            return self._bundle.history(user_row) if user_row != UNKNOWN_ROW else NO_HISTORY, user_row, 0
        item_ids = self._bundle.item_ids
        rows_L = item_ids.rows([_parsed(item_ids, item_id, f"history.{i}") for i, item_id in enumerate(request.history)])
        if request.history_timestamps_ms is None:
            times_ms_L = timestamp_ms - ASSUMED_GAP_MS * np.arange(len(rows_L), 0, -1)
        else:
            times_ms_L = np.array(request.history_timestamps_ms, dtype=np.int64)
        known_L = rows_L >= FIRST_ITEM_ROW
        given = History(rows_L, times_ms_L, self._event_types(request, len(rows_L)))
        return History(*(values_L[known_L] for values_L in given)), user_row, int(np.count_nonzero(~known_L))

    def _event_types(self, request: RecommendRequest, length: int) -> Int64Array:
        """Codes of the given kinds of events; where none are given, the first of all kinds."""
        names = self._bundle.manifest.event_types
        given = request.history_event_types
        if given is None:
            return np.zeros(length, dtype=np.int64)
        if strangers := sorted(set(given) - set(names)):
            raise UserError(f"history_event_types: no {strangers[0]!r} among the events of this model: {', '.join(names)}")
        return np.array([names.index(name) for name in given], dtype=np.int64)

    def _facts(self, request: RecommendRequest, user_row: int) -> dict[str, npt.NDArray[Any]]:
        """Features of the user and of the circumstances, as the query encoder takes them; zeros where nothing is known."""
        bundle, encoding = self._bundle, self._bundle.query_encoding
        inputs: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((1, width), np.int64 if name.endswith("codes") else np.float32) for name, width in encoding.widths().items()
        }
        if request.user_features is not None:
            given = encode_values(encoding.user, request.user_features, "user_features")
            inputs |= {"user_codes": given.codes_NS, "user_numbers": given.numbers_NF}
        elif user_row != UNKNOWN_ROW and bundle.user_codes_US is not None and bundle.user_numbers_UF is not None:
            codes_1S, numbers_1F = bundle.user_codes_US[[user_row]], bundle.user_numbers_UF[[user_row]]
            inputs |= {"user_codes": codes_1S.astype(np.int64), "user_numbers": np.asarray(numbers_1F)}
        if request.context.features is not None:
            given = encode_values(encoding.context, request.context.features, "context.features")
            inputs |= {"context_codes": given.codes_NS, "context_numbers": given.numbers_NF}
        return inputs

    async def _encode(self, history: History, facts: Mapping[str, npt.NDArray[Any]], timestamp_ms: int) -> Float32Array:
        length = len(history.item_rows_L)
        padded = bucket_length(length, self._bundle.manifest.max_history)
        vectors_BPD = np.zeros((1, padded, self._vectors_RD.shape[1]), dtype=np.float32)
        vectors_BPD[0, padded - length :] = self._vectors_RD[history.item_rows_L]
        inputs = {
            "item_vectors": vectors_BPD,
            "mask": np.arange(padded)[None] >= padded - length,
            "event_types": _padded(history.event_types_L, padded),
            "timestamps_ms": _padded(history.timestamps_ms_L, padded),
            "query_timestamp_ms": np.array([[timestamp_ms]]),
            **facts,
        }
        outputs = await self._inference.infer(QUERY_ENCODER, self._version, inputs)
        return np.asarray(outputs["query"][0], dtype=np.float32)


def _padded(values_L: Int64Array, length: int) -> Int64Array:
    """[1, length], zeros on the left."""
    return np.concatenate([np.zeros(length - len(values_L), dtype=np.int64), values_L])[None]


def _parsed(ids: IdMap, value: Id, where: str) -> Id:
    try:
        return ids.parse(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
