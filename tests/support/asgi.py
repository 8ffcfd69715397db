"""Requests to an application in this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


@asynccontextmanager
async def open_client(app: Any, *, raises: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """Opens a client of an application.

    Args:
        raises: an exception inside the application fails the test; else the client gets the answer.
    """
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def with_client(app: Any, work: Callable[[httpx.AsyncClient], Awaitable[T]], *, raises: bool = True) -> T:
    """Returns what `work` returns for a client of the application."""

    async def main() -> T:
        async with open_client(app, raises=raises) as client:
            return await work(client)

    return asyncio.run(main())


def call(app: Any, method: str, path: str, *, raises: bool = True, **options: Any) -> httpx.Response:
    """Sends one request; `options` are those of httpx."""
    return with_client(app, lambda client: client.request(method, path, **options), raises=raises)


def call_all(app: Any, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    """Sends requests one after the other: method, path, and a JSON body or None."""

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.request(method, path, json=body) for method, path, body in requests]

    return with_client(app, work)


def recommend(app: Any, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    """Sends one request for recommendations."""
    return call(app, "POST", "/v1/recommend", json=body, headers=headers)
