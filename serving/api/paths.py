"""Paths of requests: ids of any characters in them, and HEAD wherever there is GET."""

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY_ID = "any_id"
"""Converter of a path's last part: everything, slashes and line ends too, as `prepare` keeps such ids."""


class _AnyId(Convertor[str]):
    # Without the flag, a dot stands for no line end.
    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor(ANY_ID, _AnyId())


class HeadMiddleware:
    """Wraps an application and answers HEAD as GET, without the body: load balancers probe so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)
