"""Refusal of requests that a browser sends for a page of another site.

A page of any site can have a browser on this machine ask a service that listens on loopback only.
It names an own host whose address it has changed to 127.0.0.1 (DNS rebinding), or sends its own origin.
An API key stops both, as such a page does not know it.
"""

from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.addresses import is_loopback, is_unspecified, split_address
from serving.api.admission import MONITORING_PATHS
from serving.api.errors import send_problem

_PROBED = ("/healthz", *MONITORING_PATHS)
"""Asked by the address of the machine; they tell nothing of users, and change nothing."""
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
"""Their answers cannot be read by a page of another site, and they change nothing."""


class OriginMiddleware:
    """Wraps an application and answers 403 to the requests of other sites' pages.

    Args:
        app: the application.
        host: address that the service listens on; None where it is not known.
        allowed_hosts: more names of the service in `Host`; where there are some, no others are allowed.
        allowed_origins: other sites whose pages may send requests; `*` for all.
        refused: called with the status of each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str | None,
        allowed_hosts: Sequence[str],
        allowed_origins: Sequence[str],
        refused: Callable[[int], None],
    ) -> None:
        self._app = app
        self._is_local = host is not None and is_loopback(host) and not is_unspecified(host)
        self._allowed_hosts = {name.lower() for name in allowed_hosts}
        self._allowed_origins = {origin.lower() for origin in allowed_origins}
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _PROBED:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host, origin = (headers.get(name, b"").decode("latin-1").lower() for name in (b"host", b"origin"))
        if not self._is_known(_name_of(host)):
            problem = "Host: not a name of this service: add it to limits.allowed_hosts"
        elif scope["method"] not in _SAFE_METHODS and not self._is_allowed(origin, host):
            problem = "Origin: pages of that site may not send requests: add it to limits.allowed_origins"
        else:
            await self._app(scope, receive, send)
            return
        self._refused(403)
        await send_problem(send, 403, problem)

    def _is_known(self, name: str) -> bool:
        if name in self._allowed_hosts:
            return True
        return is_loopback(name) if self._is_local else not self._allowed_hosts

    def _is_allowed(self, origin: str, host: str) -> bool:
        if not origin or "*" in self._allowed_origins or origin in self._allowed_origins:
            return True
        return origin.partition("://")[2] == host


def _name_of(host: str) -> str:
    """Returns the name in a `Host` header, without the port and the brackets of IPv6.

    >>> _name_of("localhost:8000"), _name_of("[::1]:8000"), _name_of("[::1]"), _name_of("a.test")
    ('localhost', '::1', '::1', 'a.test')
    """
    has_port = ":" in host.rpartition("]")[2]
    name = split_address(host)[0] if has_port and host.rpartition(":")[2].isdigit() else host
    return name.removeprefix("[").removesuffix("]")
