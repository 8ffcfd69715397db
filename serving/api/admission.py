"""The gate before the application: who may enter, how much at a time, and how large. Plain ASGI, so that a refusal costs little."""

import asyncio
import codecs
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from passerelle.errors import UserError
from serving.api.errors import send_problem
from serving.config import LimitsConfig
from serving.watched_file import WatchedFile

OPEN_PATHS = ("/healthz", "/readyz", "/metrics", "/")
"""For those who watch the service, and the page that asks for a key: they need none, and are let in when it is full."""
_COMPUTED = ("/v1/recommend", "/v1/similar")
_OF_EVENTS = ("/v1/events", "/v1/users/")
BODY_TIMEOUT_S = 10.0
RETRY_AFTER_S = 1
ALWAYS_ROOM = 4
"""Else a few slow requests would close the gate for good: costs are learnt from those inside."""
SMOOTHING = 0.05
_MOST_CALLERS = 100_000


class AdmissionMiddleware:
    """Wraps an application.

    Args:
        app: what is behind.
        limits: keys, rates and sizes.
        keys: of those who may enter; None lets everybody in.
        refused: told of each refusal, with its status.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: LimitsConfig,
        keys: WatchedFile[tuple[bytes, ...]] | None,
        refused: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._refused = refused
        self._rates = None if limits.requests_per_s is None else RateLimiter(limits.requests_per_s, clock)
        # Events wait for a disk or another machine: neither recommendations nor item pages must wait with them.
        self._computed, self._of_events, self._others = (
            ConcurrencyLimiter(limits.max_in_flight, limits.max_expected_ms, clock) for _ in range(3)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        caller = (scope.get("client") or ("",))[0].encode()
        if self._keys is not None:
            key = _given_key(headers.get(b"authorization", b""))
            if not _is_one_of(key, self._keys.value):
                await self._refuse(
                    send,
                    401,
                    "give a key of this service: Authorization: Bearer KEY",
                    {b"www-authenticate": b"Bearer"},
                )
                return
            caller = key
        if self._rates is not None and not self._rates.admit(caller):
            await self._refuse(
                send,
                429,
                f"more than {self._limits.requests_per_s:g} requests a second of one caller",
                _RETRY,
            )
            return
        crowd = self._crowd(scope["path"])
        if not crowd.has_room():
            await self._refuse(
                send, 429, f"{crowd.inside} requests are inside: ask again a little later", _RETRY
            )
            return
        try:
            body = await asyncio.wait_for(
                _whole_body(headers, receive, self._limits.max_body_bytes), BODY_TIMEOUT_S
            )
        except _TooLargeError:
            await self._refuse(send, 413, f"the body is larger than {self._limits.max_body_bytes} bytes")
            return
        except TimeoutError:
            await self._refuse(send, 408, f"the body did not come within {BODY_TIMEOUT_S:g} s")
            return
        if body is None:
            return
        if not crowd.has_room():  # others came while the body did
            await self._refuse(
                send, 429, f"{crowd.inside} requests are inside: ask again a little later", _RETRY
            )
            return
        with crowd.one():  # from here on: how slowly a body comes says nothing of what it costs
            await self._app(scope, _Replayed(body, receive).receive, send)

    def _crowd(self, path: str) -> "ConcurrencyLimiter":
        if path in _COMPUTED:
            return self._computed
        return self._of_events if path.startswith(_OF_EVENTS) else self._others

    async def _refuse(
        self, send: Send, status: int, message: str, headers: dict[bytes, bytes] | None = None
    ) -> None:
        self._refused(status)
        await send_problem(send, status, message, headers)


_RETRY = {b"retry-after": str(RETRY_AFTER_S).encode()}


class _TooLargeError(Exception):
    """More bytes than a body may have."""


async def _whole_body(headers: dict[bytes, bytes], receive: Receive, most: int) -> bytes | None:
    """The body; None where the client has gone.

    Raises:
        _TooLargeError: it is, or says that it will be.
    """
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 18 or int(length) > most:
        raise _TooLargeError
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _TooLargeError
        if not message.get("more_body", False):
            return b"".join(parts)


class _Replayed:
    """Gives a body that was read already, then what comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def receive(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class ConcurrencyLimiter:
    """How many requests are inside, and whether one more would be answered in time.

    A request takes as long as those beside it make it take: what one costs is its time divided by how many were inside when it came in.

    Args:
        most: inside at a time, whatever they cost.
        max_expected_ms: time that one more may be expected to take.
        clock: seconds that only grow.
    """

    def __init__(
        self, most: int, max_expected_ms: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._max_expected_s = max_expected_ms / 1e3
        self._clock = clock
        self._cost_s = 0.0
        self.inside = 0

    def has_room(self) -> bool:
        """Whether one more may come in."""
        return self.inside < min(self._most, ALWAYS_ROOM) or (
            self.inside < self._most and (self.inside + 1) * self._cost_s <= self._max_expected_s
        )

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more is inside, for as long as the block lasts."""
        self.inside += 1
        among, came = self.inside, self._clock()
        try:
            yield
        finally:
            self.inside -= 1
            cost_s = (self._clock() - came) / among
            self._cost_s += SMOOTHING * (cost_s - self._cost_s)


class RateLimiter:
    """So many requests a second of each caller, and as many at once (a token bucket each; callers not seen for long are forgotten).

    Args:
        requests_per_s: of one caller.
        clock: seconds that only grow.
    """

    def __init__(self, requests_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = requests_per_s
        self._most = max(1.0, requests_per_s)
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def admit(self, caller: bytes) -> bool:
        """Whether one more request of a caller is within the rate."""
        now = self._clock()
        tokens, since = self._buckets.pop(caller, (self._most, now))
        tokens = min(self._most, tokens + (now - since) * self._rate)
        admitted = tokens >= 1.0
        self._buckets[caller] = (tokens - 1.0 if admitted else tokens, now)
        if len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        return admitted


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The keys of a file, one a line.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        keys = tuple(
            line.strip()
            for line in path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
            if line.strip()
        )
    except OSError as error:
        raise UserError(f"{path}: the file of API keys cannot be read ({error.strerror})") from None
    if not keys:
        raise UserError(f"{path}: no API key in it, so nobody could ask: write one a line")
    return keys


def _given_key(authorization: bytes) -> bytes:
    """What comes after the scheme, which may be written in any case (RFC 7235), or all where there is none."""
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else authorization


def _is_one_of(key: bytes, keys: tuple[bytes, ...]) -> bool:
    """Compared with each in a time that tells nothing of how much is right."""
    right = False
    for other in keys:
        right |= hmac.compare_digest(key, other)
    return right
