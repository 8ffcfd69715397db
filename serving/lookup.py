"""First stage: from a user or a history to one query vector.

Shape legend: B batch (1 here), L history length, P padded length, D vector width, R item rows (special rows included).
"""

import time

import numpy as np

from passerelle.bundle import QUERY_ENCODER, Bundle
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, Id, IdMap
from passerelle.ids import FIRST_ITEM_ROW
from serving.schemas import RecommendRequest
from serving.stages import Float32Array, Inference, Int64Array, Query

SHORTEST_BUCKET = 16
ASSUMED_GAP_MS = 60_000


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
            UserError: an id is not of the catalogue's type.
        """
        rows_L, times_ms_L, ignored = self._history(request, timestamp_ms)
        newest = slice(-self._bundle.manifest.max_history, None)
        history_L = rows_L[newest]
        seen_S = np.unique(rows_L) if request.exclude_seen else np.empty(0, dtype=np.int64)
        if not len(history_L):
            return Query(history_L, seen_S, None, ignored, 0.0)
        started = time.perf_counter()
        query_D = await self._encode(history_L, times_ms_L[newest], timestamp_ms)
        return Query(history_L, seen_S, query_D, ignored, 1e3 * (time.perf_counter() - started))

    def _history(self, request: RecommendRequest, timestamp_ms: int) -> tuple[Int64Array, Int64Array, int]:
        """Known item rows, oldest first, when each happened, and how many of the given ids are unknown."""
        if request.history is not None:
            item_ids = self._bundle.item_ids
            rows_L = item_ids.rows([_parsed(item_ids, item_id, f"history.{i}") for i, item_id in enumerate(request.history)])
            if request.history_timestamps_ms is None:
                times_ms_L = timestamp_ms - ASSUMED_GAP_MS * np.arange(len(rows_L), 0, -1)
            else:
                times_ms_L = np.array(request.history_timestamps_ms, dtype=np.int64)
            known_L = rows_L >= FIRST_ITEM_ROW
            return rows_L[known_L], times_ms_L[known_L], int(np.count_nonzero(~known_L))
        if request.user_id is not None:
            user_row = self._bundle.user_ids.row(_parsed(self._bundle.user_ids, request.user_id, "user_id"))
            if user_row != UNKNOWN_ROW:
                return *self._bundle.history(user_row), 0
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, 0

    async def _encode(self, history_L: Int64Array, times_ms_L: Int64Array, timestamp_ms: int) -> Float32Array:
        padded = bucket_length(len(history_L), self._bundle.manifest.max_history)
        vectors_BPD = np.zeros((1, padded, self._vectors_RD.shape[1]), dtype=np.float32)
        vectors_BPD[0, padded - len(history_L) :] = self._vectors_RD[history_L]
        times_ms_BP = np.zeros((1, padded), dtype=np.int64)
        times_ms_BP[0, padded - len(history_L) :] = times_ms_L
        inputs = {
            "item_vectors": vectors_BPD,
            "mask": np.arange(padded)[None] >= padded - len(history_L),
            "timestamps_ms": times_ms_BP,
            "query_timestamp_ms": np.array([[timestamp_ms]]),
        }
        outputs = await self._inference.infer(QUERY_ENCODER, self._version, inputs)
        return np.asarray(outputs["query"][0], dtype=np.float32)


def _parsed(ids: IdMap, value: Id, where: str) -> Id:
    try:
        return ids.parse(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
