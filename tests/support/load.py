"""Clients that ask a running service all the time while a test breaks a part of it."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from passerelle.bundle import Bundle
from tests.support.waiting import eventually

NOW_MS = 1_700_000_000_000
CLIENTS = 4
ALLOWED = {200, 202, 429, 503}
ANSWERS_BEFORE_AND_AFTER = 40


class Load:
    """Clients that ask for known users all the time, and compare what comes with what should."""

    def __init__(self, url: str, bundle: Bundle) -> None:
        self._url = url
        context = {"timestamp_ms": NOW_MS}
        self._bodies = [
            {"user_id": user_id, "context": context} for user_id in bundle.reference().user_ids()[:8]
        ]
        with httpx.Client(base_url=url) as client:
            self._expected = [
                client.post("/v1/recommend", json=body).raise_for_status().json()["items"]
                for body in self._bodies
            ]
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.degraded: Counter[tuple[str, ...]] = Counter()
        self.lost = 0
        """Connections that ended without an answer."""
        self.wrong: list[Any] = []
        self.last_degraded_s = 0.0

    def _ask(self, number: int) -> None:
        client = httpx.Client(base_url=self._url, timeout=60)
        position = number
        while not self._stopped.is_set():
            position += 1
            which = position % len(self._bodies)
            try:
                answer = client.post("/v1/recommend", json=self._bodies[which])
            except httpx.TransportError:
                with self._lock:
                    self.lost += 1
                client.close()
                client = httpx.Client(base_url=self._url, timeout=60)
                continue
            self._note(answer, which)
        client.close()

    def _note(self, answer: httpx.Response, which: int) -> None:
        with self._lock:
            self.statuses[answer.status_code] += 1
            if answer.status_code != 200:
                return
            values = answer.json()
            self.degraded[tuple(values["degraded"])] += 1
            if values["degraded"]:
                self.last_degraded_s = time.monotonic()
            expected = self._expected[which]
            if "query_encoder" in values["degraded"]:
                right = values["fallback"] == "similar" and len(values["items"]) == len(expected)
            elif "ranker" in values["degraded"]:
                right = [item["sources"][0]["rank"] for item in values["items"]] == list(
                    range(1, len(expected) + 1)
                )
            else:
                right = values["fallback"] is None and _same(values["items"], expected)
            if not right:
                self.wrong.append(values)

    @contextlib.contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            self.wait_for_answers(ANSWERS_BEFORE_AND_AFTER)
            yield self
            self.wait_for_answers(ANSWERS_BEFORE_AND_AFTER)
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()
        assert set(self.statuses) <= ALLOWED and self.wrong == [], (self.statuses, self.wrong[:1])
        assert self.statuses[200] > 50

    def wait_for(self, condition: Callable[[], bool]) -> None:
        eventually(condition, lambda: (self.statuses, self.degraded), interval_s=0.05)

    def wait_for_answers(self, count: int) -> None:
        """Until as many more requests were answered in full or in part."""
        answered = self.statuses[200]
        eventually(lambda: self.statuses[200] >= answered + count, lambda: self.statuses)

    def is_whole_again(self) -> bool:
        """Nothing was left out for two seconds."""
        return time.monotonic() - self.last_degraded_s > 2.0


def _same(items: list[Any], expected: list[Any]) -> bool:
    """The same items in the same order; networks round otherwise when requests are merged into one."""
    scores = zip(items, expected, strict=True)
    return [item["item_id"] for item in items] == [item["item_id"] for item in expected] and all(
        abs(one["score"] - other["score"]) < 1e-5 for one, other in scores
    )
