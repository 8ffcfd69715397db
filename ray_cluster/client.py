"""A client of the running service, for the command line."""

from typing import Any
from urllib.parse import urlencode

import httpx

from passerelle.errors import UserError
from serving.addresses import is_loopback

TIMEOUT_S = 30.0


class ServiceClient:
    """Speaks HTTP to a service; a context manager.

    Args:
        url: where it answers, `http://127.0.0.1:8000`.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            base = httpx.URL(self._url)
            # A service of this machine is not asked through a proxy.
            self._http = httpx.Client(base_url=base, timeout=TIMEOUT_S, trust_env=not is_loopback(base.host))
        except httpx.InvalidURL as error:
            raise UserError(f"--url {url}: {error}") from None

    def __enter__(self) -> "ServiceClient":
        return self

    def __exit__(self, *failure: object) -> None:
        self._http.close()

    def recommend(self, request: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/recommend`.

        Raises:
            UserError: no service answers there, or it refuses; with its own message.
        """
        return self._call("POST", "/v1/recommend", request)

    def similar(self, request: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/similar`; raises as `recommend` does."""
        return self._call("POST", "/v1/similar", request)

    def item(self, item_id: str | int) -> dict[str, Any]:
        """`GET /v1/items?item_id=ID`; raises as `recommend` does."""
        return self._call("GET", f"/v1/items?{urlencode({'item_id': item_id})}", None)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise UserError(
                f"no service answers at {self._url} ({error}): start one with `passerelle serve BUNDLE`, or "
                "name it with --url"
            ) from None
        try:
            values: dict[str, Any] = answer.json()
        except ValueError:
            raise UserError(
                f"{self._url}{path} answered with status {answer.status_code}, not with JSON: is that our "
                "service?"
            ) from None
        if answer.is_success:
            return values
        problems = values.get("detail", values)
        if not isinstance(problems, list):
            raise UserError(f"{self._url}{path} answered with status {answer.status_code}: {problems}")
        raise UserError(
            "; ".join(
                ": ".join([*(str(part) for part in problem["loc"][1:]), problem["msg"]])
                for problem in problems
            )
        )
