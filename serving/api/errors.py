"""The last line: what nobody foresaw is counted, said and logged without the values that it may carry."""

import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


def location_of(error: BaseException) -> str:
    """What kind of error it is, and where it came from; not what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{where}"


async def send_problem(
    send: Send, status: int, message: str, headers: dict[bytes, bytes] | None = None
) -> None:
    """An answer of one problem, in plain ASGI."""
    body = json.dumps({"detail": [{"loc": [], "msg": message}]}).encode()
    all_headers = {
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
        **(headers or {}),
    }
    await send({"type": "http.response.start", "status": status, "headers": list(all_headers.items())})
    await send({"type": "http.response.body", "body": body})


class StageError(Exception):
    """A mistake of ours in a stage that lives elsewhere: its kind and place, which can be told."""


class ErrorMiddleware:
    """Wraps an application: an exception that comes out of it is answered 500. The server would log it with all that it says.

    Args:
        app: what is behind.
        failed: told of each, with the path that was asked.
    """

    def __init__(self, app: ASGIApp, failed: Callable[[str], None]) -> None:
        self._app = app
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http":
                raise
            logger.error("500: %s", str(error) if isinstance(error, StageError) else location_of(error))
            self._failed(scope["path"])
            if not begun:
                await send_problem(send, 500, "this should not happen: it is in the log of the service")
