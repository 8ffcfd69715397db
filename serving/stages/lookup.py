"""First stage: from a user or a history to one query vector. What users did since the version was trained comes from the event store.

Shape legend: B batch (1 here), L history length, P padded length, D vector width, R item rows (special rows included).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from passerelle.arrays import Float32Array, Int64Array
from passerelle.bundle import QUERY_ENCODER, Bundle, History
from passerelle.errors import UserError
from passerelle.id_map import UNKNOWN_ROW, Id, parsed, parsed_or_none
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.request_features import encode_values
from serving.config import ServingConfig
from serving.events.base import EMPTY_USER, EventStore, EventStoreError, UserState, new_identity, user_digest
from serving.schemas.recommend import RecommendRequest
from serving.stages.types import ENCODER_DOWN, EVENTS_DOWN, Inference, InferenceError, Query

SHORTEST_BUCKET = 16
ASSUMED_GAP_MS = 60_000
INFER_TIMEOUT_S = 2.0
EVENTS_SHARE, ENCODER_SHARE = 0.3, 0.6
"""Of the time that is left: what fails takes no more, so that there is time for an answer without it."""
ERASURE_REFRESH_INTERVAL_S = 5.0
_REST = 50
"""Where very many are erased, who they are is asked less often: it takes a fiftieth of the time at most."""
NO_HISTORY = History(*(np.empty(0, dtype=np.int64) for _ in History._fields))

logger = logging.getLogger(__name__)


def bucket_length(length: int, max_history: int) -> int:
    """Length a history is padded to: a power of two, so that Triton meets few shapes and can merge requests; at most `max_history`.

    >>> [bucket_length(length, 200) for length in (1, 16, 17, 100, 129, 200)]
    [16, 16, 32, 128, 200, 200]
    """
    bucket = SHORTEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, max_history)


@dataclass(frozen=True)
class _Known:
    """What is known of the user of a request."""

    history: History
    user_row: int
    ignored: int
    """Given ids that are unknown."""
    given: bool
    """The history is the request's own."""
    identity: str | None
    degraded: tuple[str, ...]


class EmbeddingLookup:
    """Turns ids into rows, gathers the item vectors and lets the query encoder make one vector of them.

    Args:
        bundle: vectors, id maps and stored histories.
        inference: runs the query encoder.
        version: which version of it.
        config: who is cold, and how long the event store may take.
        events: what users did lately; None where that is not kept.

    Raises:
        UserError: the rule for cold users names a kind of event that the model does not know.
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
        self._cold, self._events_config = config.cold_start, config.events
        self._events = events
        self._names_users = config.log.file is not None
        self._erased: frozenset[str] | None = None
        self._keeping_up: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        if strangers := sorted(set(self._cold.min_events_of) - set(bundle.manifest.event_types)):
            known = ", ".join(bundle.manifest.event_types)
            raise UserError(
                f"cold_start.min_events_of: no {strangers[0]!r} among the events of this model: {known}"
            )

    async def run(
        self, request: RecommendRequest, timestamp_ms: int, timeout_s: float = INFER_TIMEOUT_S
    ) -> Query:
        """The query vector of the request's history, else of what is known of the user; none for those who are cold.

        Raises:
            UserError: an id is not of the catalogue's type, there is no such kind of event, or a feature is not one that the model reads.
        """
        started = time.perf_counter()
        known = await self._known(request, timestamp_ms, EVENTS_SHARE * timeout_s)
        newest = History(*(values_L[-self._bundle.manifest.max_history :] for values_L in known.history))
        seen_S = self._bundle.seen(known.history) if request.exclude_seen else np.empty(0, dtype=np.int64)
        facts = self._facts(request, known.user_row)
        nothing = Query(newest.item_rows_L, seen_S, None, known.ignored, 0.0, known.degraded, known.identity)
        if self._is_cold(known):
            return nothing
        encoding = time.perf_counter()
        try:
            query_D = await self._encode(
                newest, facts, timestamp_ms, ENCODER_SHARE * (timeout_s - (encoding - started))
            )
        except InferenceError as error:
            logger.warning("without the query encoder: %s", error)
            return replace(nothing, degraded=(*known.degraded, ENCODER_DOWN))
        return replace(nothing, query_D=query_D, encode_ms=1e3 * (time.perf_counter() - encoding))

    async def history(self, user_id: Id, limit: int) -> History:
        """The newest known events of a user, oldest first: those of the bundle and those since.

        Raises:
            UserError: the id is not of the type of this bundle's users.
        """
        known = await self._known(RecommendRequest(user_id=user_id), 0, INFER_TIMEOUT_S)
        return History(*(values_L[-limit:] for values_L in known.history))

    def _is_cold(self, known: _Known) -> bool:
        """By the rule of the serving file."""
        count = len(known.history.item_rows_L)
        if known.given:
            return count < self._cold.min_request_items
        if not count or not self._cold.min_events_of:
            return count < max(1, self._cold.min_events)
        names = self._bundle.manifest.event_types
        counts = np.bincount(known.history.event_types_L, minlength=len(names))
        return all(counts[names.index(name)] < least for name, least in self._cold.min_events_of.items())

    async def _known(self, request: RecommendRequest, timestamp_ms: int, timeout_s: float) -> _Known:
        """The history that is given, or what is stored and what happened since."""
        user_row, state = UNKNOWN_ROW, EMPTY_USER
        degraded: tuple[str, ...] = ()
        if request.user_id is not None:
            user_id = parsed(self._bundle.user_ids, request.user_id, "user_id")
            user_row = self._bundle.user_ids.row(user_id)
            state, degraded = await self._state(str(user_id), timeout_s)
        if state.erased:
            user_row = UNKNOWN_ROW
        if request.history is not None:
            history, ignored = self._given(request, timestamp_ms)
            return _Known(history, user_row, ignored, True, state.identity, degraded)
        stored = self._bundle.history(user_row) if user_row != UNKNOWN_ROW else NO_HISTORY
        return _Known(self._with_events(stored, state), user_row, 0, False, state.identity, degraded)

    async def _state(self, user_id: str, timeout_s: float) -> tuple[UserState, tuple[str, ...]]:
        """What the event store knows, and whether it had to be done without."""
        if self._events is None:
            return EMPTY_USER, ()
        try:
            within_s = min(timeout_s, self._events_config.timeout_ms / 1e3)
            state = await asyncio.wait_for(
                self._events.user(user_id, self._events_config.keep_per_user), within_s
            )
        except (EventStoreError, TimeoutError) as error:
            logger.warning("without events: %s", str(error) or "the store took too long")
            # Whoever asked to be forgotten stays so while the store is away; of whom it is not known, nothing is known.
            digest = user_digest(user_id)
            erased = self._erased is None or digest in self._erased or digest in self._events.erased_here
            return UserState(erasures=int(erased)), (EVENTS_DOWN,)
        if self._keeping_up is None or self._keeping_up.done():
            self._keeping_up = asyncio.create_task(self._keep_up_with_erasures())
        if state.identity is None and self._names_users:
            state = replace(state, identity=(identity := new_identity()))
            self._in_background(_identified(self._events, user_id, identity, state.erasures))
        return state, ()

    async def _keep_up_with_erasures(self) -> None:
        """Remember who is erased, also by other processes and while nobody asks, for when the store is away."""
        assert self._events is not None, "no store"
        while True:
            begun = time.monotonic()
            with contextlib.suppress(EventStoreError):
                self._erased = await self._events.erased()
            await asyncio.sleep(ERASURE_REFRESH_INTERVAL_S + _REST * (time.monotonic() - begun))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _with_events(self, stored: History, state: UserState) -> History:
        """A history and the events that it does not have yet, in the order of time; what this bundle does not know is left out."""
        if not state.events:
            return stored
        names, item_ids = self._bundle.manifest.event_types, self._bundle.item_ids
        there = set(
            zip(*(values_L.tolist() for values_L in stored), strict=True)
        )  # an older bundle may have been made without them
        known = [
            (parsed_or_none(item_ids, event.item_id), event)
            for event in state.events
            if event.event_type in names
        ]
        known = [
            (item_id, event) for item_id, event in known if item_id is not None
        ]  # others are of a bundle with other ids
        rows = item_ids.rows([item_id for item_id, _ in known]).tolist()
        news = [
            (row, event.timestamp_ms, names.index(event.event_type))
            for row, (_, event) in zip(rows, known, strict=True)
        ]
        lately = [new for new in news if new[0] >= FIRST_ITEM_ROW and new not in there]
        after = np.array(lately, dtype=np.int64).reshape(-1, len(History._fields))
        both = History(
            *(np.concatenate([before, more]) for before, more in zip(stored, after.T, strict=True))
        )
        order = np.argsort(both.timestamps_ms_L, kind="stable")
        return History(*(values_L[order] for values_L in both))

    def _given(self, request: RecommendRequest, timestamp_ms: int) -> tuple[History, int]:
        """The known items of the request's history, and how many of its ids are unknown."""
        assert request.history is not None, "no history given"
        item_ids = self._bundle.item_ids
        rows_L = item_ids.rows(
            [parsed(item_ids, item_id, f"history.{i}") for i, item_id in enumerate(request.history)]
        )
        if request.history_timestamps_ms is None:
            times_ms_L = timestamp_ms - ASSUMED_GAP_MS * np.arange(len(rows_L), 0, -1)
        else:
            times_ms_L = np.array(request.history_timestamps_ms, dtype=np.int64)
        known_L = rows_L >= FIRST_ITEM_ROW
        given = History(rows_L, times_ms_L, self._event_types(request, len(rows_L)))
        return History(*(values_L[known_L] for values_L in given)), int(np.count_nonzero(~known_L))

    def _event_types(self, request: RecommendRequest, length: int) -> Int64Array:
        """Codes of the given kinds of events; where none are given, the first of all kinds."""
        names = self._bundle.manifest.event_types
        given = request.history_event_types
        if given is None:
            return np.zeros(length, dtype=np.int64)
        if strangers := sorted(set(given) - set(names)):
            raise UserError(
                f"history_event_types: no {strangers[0]!r} among the events of this model: {', '.join(names)}"
            )
        return np.array([names.index(name) for name in given], dtype=np.int64)

    def _facts(self, request: RecommendRequest, user_row: int) -> dict[str, npt.NDArray[Any]]:
        """Features of the user and of the circumstances, as the query encoder takes them; zeros where nothing is known."""
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
        self, history: History, facts: Mapping[str, npt.NDArray[Any]], timestamp_ms: int, timeout_s: float
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
            "query_timestamp_ms": np.array([[timestamp_ms]]),
            **facts,
        }
        outputs = await self._inference.infer(QUERY_ENCODER, self._version, inputs, timeout_s)
        query_D = np.asarray(outputs["query"][0], dtype=np.float32)
        if not np.isfinite(query_D).all():
            raise InferenceError(QUERY_ENCODER, "INTERNAL", "a vector that holds no numbers")
        return query_D


def _padded(values_L: Int64Array, length: int) -> Int64Array:
    """[1, length], zeros on the left."""
    return np.concatenate([np.zeros(length - len(values_L), dtype=np.int64), values_L])[None]


async def _identified(events: EventStore, user_id: str, identity: str, erasures: int) -> None:
    with contextlib.suppress(
        EventStoreError
    ):  # without it, the next request of this user has another name in the log
        await events.identify(user_id, identity, erasures)
