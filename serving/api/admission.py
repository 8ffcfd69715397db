"""Admission of requests before the application: API keys, rates, concurrency and body sizes.

Plain ASGI, so that a refusal costs little.
"""

import asyncio
import codecs
import hmac
import math
import time
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from passerelle.errors import UserError
from serving.api.errors import send_problem
from serving.api.limiters import ConcurrencyLimiter, RateLimiter
from serving.config import LimitsConfig
from serving.watched_file import WatchedFile

OPEN_PATHS = ("/healthz", "/")
"""Whether the process is alive, and the page that asks for a key: always admitted."""
MONITORING_PATHS = ("/readyz", "/metrics")
"""Admitted without a key, but not any number of them: they ask other components."""
MAX_MONITORING = 16
_COMPUTED = ("/v1/recommend", "/v1/similar")
_OF_EVENTS = ("/v1/events", "/v1/users", "/v1/history")
BODY_TIMEOUT_S = 10.0
LARGE_BYTES = 64 * 1024
"""Parsing and validating so much takes some milliseconds at most, in which no other request is answered."""
RETRY_AFTER_S = 1


class AdmissionMiddleware:
    """Wraps an application and answers 401, 408, 413 or 429 to the requests that it does not admit.

    Args:
        app: the application.
        limits: rates and sizes.
        keys: accepted API keys; None admits every caller.
        refused: called with the status of each refusal.
        num_abandoned: returns how many recommendations have ended but still use a thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: LimitsConfig,
        keys: WatchedFile[tuple[bytes, ...]] | None,
        refused: Callable[[int], None],
        num_abandoned: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._refused = refused
        self._rate_limiter = (
            None if limits.requests_per_s is None else RateLimiter(limits.requests_per_s, clock)
        )
        self._large_bodies = RateLimiter(
            limits.max_large_bytes_per_s, clock, max_amount=limits.max_body_bytes
        )
        # Events wait for a disk or another machine: neither recommendations nor item pages wait with them.
        self._computed, self._of_events, self._others = (
            ConcurrencyLimiter(limits.max_in_flight, limits.max_expected_ms, clock, abandoned)
            for abandoned in (num_abandoned, lambda: 0, lambda: 0)
        )
        self._monitoring = ConcurrencyLimiter(MAX_MONITORING, math.inf, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        limiter = self._limiter(scope["path"])
        try:
            self._check_caller(scope, headers)
            self._check_capacity(limiter)
            # Refused before it is sent where others have used it up, and counted once it is here.
            if self._announced_bytes(headers) > LARGE_BYTES and not self._large_bodies.has(b"", LARGE_BYTES):
                raise _RefusedError(429, _TOO_MANY_LARGE, _RETRY)
            body = await self._body(receive)
            if body is None:
                return
            if len(body) > LARGE_BYTES and not self._large_bodies.admit(b"", len(body)):
                raise _RefusedError(429, _TOO_MANY_LARGE, _RETRY)
            # Other requests may have been admitted while the body arrived.
            self._check_capacity(limiter)
        except _RefusedError as refusal:
            self._refused(refusal.status)
            await send_problem(send, refusal.status, refusal.message, refusal.headers)
            return
        # The time in which the body arrives is no part of what the request costs.
        with limiter.request():
            await self._app(scope, _Replayed(body, receive).receive, send)

    def _check_caller(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Checks the API key and the rate of the caller.

        Raises:
            _RefusedError: 401 or 429.
        """
        caller = (scope.get("client") or ("",))[0].encode()
        if self._keys is not None and scope["path"] not in MONITORING_PATHS:
            caller = _given_key(headers.get(b"authorization", b""))
            if not _is_one_of(caller, self._keys.value):
                message = "give a key of this service: Authorization: Bearer KEY"
                raise _RefusedError(401, message, {b"www-authenticate": b"Bearer"})
        if self._rate_limiter is not None and not self._rate_limiter.admit(caller):
            raise _RefusedError(
                429, f"more than {self._limits.requests_per_s:g} requests a second of one caller", _RETRY
            )

    def _check_capacity(self, limiter: ConcurrencyLimiter) -> None:
        """Checks that one more request would be answered in time.

        Raises:
            _RefusedError: 429.
        """
        if not limiter.has_capacity():
            message = f"{limiter.in_flight} requests are in flight: ask again a little later"
            raise _RefusedError(429, message, _RETRY)

    def _announced_bytes(self, headers: dict[bytes, bytes]) -> int:
        """Returns the length that the client announces; 0 where it announces none.

        Raises:
            _RefusedError: 413.
        """
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        return int(length)

    async def _body(self, receive: Receive) -> bytes | None:
        """Returns the whole body; None where the client has disconnected.

        Raises:
            _RefusedError: 408 or 413.
        """
        try:
            return await asyncio.wait_for(_whole_body(receive, self._limits.max_body_bytes), BODY_TIMEOUT_S)
        except TimeoutError:
            raise _RefusedError(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from None

    def _limiter(self, path: str) -> ConcurrencyLimiter:
        if path in _COMPUTED:
            return self._computed
        if path in MONITORING_PATHS:
            return self._monitoring
        return self._of_events if path.startswith(_OF_EVENTS) else self._others


_TOO_MANY_LARGE = "too many large bodies: send it again a little later"
_RETRY = {b"retry-after": str(RETRY_AFTER_S).encode()}


class _RefusedError(Exception):
    """A request that is not admitted."""

    def __init__(self, status: int, message: str, headers: dict[bytes, bytes] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def _too_large(max_bytes: int) -> _RefusedError:
    return _RefusedError(413, f"the body is larger than {max_bytes} bytes")


async def _whole_body(receive: Receive, max_bytes: int) -> bytes | None:
    """Returns the body; None where the client has disconnected.

    Raises:
        _RefusedError: the body is larger than `max_bytes`.
    """
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(chunks)


class _Replayed:
    """Gives the application a body that was read already, then the messages after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def receive(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Returns the API keys of a file, one a line.

    Raises:
        UserError: the file cannot be read, or has no key.
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
        raise UserError(f"{path}: no API key in it, so that every request would be refused: write one a line")
    return keys


def _given_key(authorization: bytes) -> bytes:
    """Returns the key after `Bearer` in any case (RFC 7235), or the whole header where there is no scheme."""
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else authorization


def _is_one_of(key: bytes, keys: tuple[bytes, ...]) -> bool:
    """Compares with every key in a time that does not depend on how much is right."""
    right = False
    for other in keys:
        right |= hmac.compare_digest(key, other)
    return right
