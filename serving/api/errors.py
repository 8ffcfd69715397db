"""Unexpected errors: counted, answered and logged without the values that their messages may hold."""

import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


def location_of(error: BaseException) -> str:
    """Returns the type of an error and the line of code that raised it, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{where}"


async def send_problem(
    send: Send, status: int, message: str, headers: dict[bytes, bytes] | None = None
) -> None:
    """Sends an answer of one problem, in plain ASGI."""
    body = json.dumps({"detail": [{"loc": [], "msg": message}]}).encode()
    all_headers = {
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
        **(headers or {}),
    }
    await send({"type": "http.response.start", "status": status, "headers": list(all_headers.items())})
    await send({"type": "http.response.body", "body": body})


class StageError(Exception):
    """An unexpected error in a stage of another process; its message holds only the type and the location."""


class ErrorMiddleware:
    """Wraps an application and answers 500 to an exception that the application raises.

    The server would log the exception with its message.

    Args:
        app: the application.
        failed: called with the path of each failed request.
    """

    def __init__(self, app: ASGIApp, failed: Callable[[str], None]) -> None:
        self._app = app
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer_started = False

        async def tracked_send(message: Message) -> None:
            nonlocal answer_started
            answer_started = True
            await send(message)

        try:
            await self._app(scope, receive, tracked_send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            logger.error("500: %s", str(error) if isinstance(error, StageError) else location_of(error))
            self._failed(scope["path"])
            if not answer_started:
                await send_problem(send, 500, "this should not happen: it is in the log of the service")
