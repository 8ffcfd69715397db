"""Fuzzed requests: no server errors, no exceptions, no leaked memory."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.api.app import build_app
from serving.config import ServingConfig
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from tests.serving.conftest import recommender_of
from tests.support.asgi import open_client
from tests.support.inference import OnnxInference
from tests.support.request_fuzzer import requests

ALLOWED = {200, 202, 404, 405, 409, 413, 422}
CONFIG = {
    "playlists": {
        "books": {"ordering": {"diversify": "mmr"}, "sources": [{"kind": "personal"}, {"kind": "trending"}]}
    },
    "limits": {"deadline_ms": 60_000, "max_large_bytes_per_s": 10**9},
}


@pytest.fixture(scope="module")
def app(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = SqliteEventStore(tmp_path_factory.mktemp("fuzz") / "events.sqlite")
    config = validate(ServingConfig, CONFIG, "test")
    yield build_app(
        recommender_of(bundle, OnnxInference(bundle), 7, config, store), EventIntake(bundle, store)
    )
    asyncio.run(store.close())


def fuzz(app: Any, count: int, seed: int) -> tuple[Counter[int], list[float]]:
    """Returns the number of answers by status, and the memory of this process after each quarter, MiB.

    An exception inside the application fails the test.
    """
    process, memory = psutil.Process(), []

    async def main() -> Counter[int]:
        statuses: Counter[int] = Counter()
        async with open_client(app) as client:
            for i, (method, path, body, headers) in enumerate(requests(app.openapi(), count, seed)):
                answer = await client.request(method, path, content=body, headers=headers)
                past_deadline = (
                    answer.status_code == 503
                    and b'"deadline_ms"' in body
                    and "time of the request is over" in answer.text
                )
                assert past_deadline or answer.status_code in ALLOWED, (
                    answer.status_code,
                    answer.text[:300],
                    method,
                    path[:200],
                    body[:500],
                )
                if answer.headers.get("content-type") == "application/json":
                    json.loads(answer.text)
                assert "Traceback" not in answer.text and "x-injected" not in answer.headers
                statuses[answer.status_code] += 1
                if i % (count // 4) == count // 4 - 1:
                    memory.append(process.memory_info().rss / 2**20)
        return statuses

    return asyncio.run(main()), memory


def test_two_thousand_fuzzed_requests(app: Any) -> None:
    statuses, _ = fuzz(app, 2000, seed=1)
    assert statuses[200] > 300 and statuses[422] > 200 and statuses[202] > 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_fuzzed_requests_keep_memory_flat(
    app: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses, memory = fuzz(app, 20_000, seed=2)
    with capsys.disabled():
        print(f"\n{dict(statuses)}, MiB at the quarters: {[round(one) for one in memory]}")
    assert memory[-1] - memory[1] < 30, memory
