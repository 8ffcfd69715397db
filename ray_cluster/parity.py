"""How far the served networks, and the whole HTTP answer, are from what training computed for the bundle's reference users.

Shape legend: D vector width, K the ten best items.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from passerelle.bundle import QUERY_ENCODER, Bundle
from passerelle.config import Config
from passerelle.progress import Progress
from serving.schemas.recommend import RecommendRequest
from serving.stages.lookup import EmbeddingLookup
from serving.stages.ranking import Ranking
from serving.stages.types import Candidates, RequestTime
from serving.triton.client import TritonClient, TritonError

TOLERANCE = 1e-4
TOP = 10
_CONCURRENCY = 8
_TIMEOUT_S = 30.0


class TritonParity(Config):
    """Triton against training, over the reference users."""

    users: int
    max_query_difference: float
    """Largest absolute difference of one component of a query vector."""
    max_score_difference: float
    """Largest absolute difference of a ranker's score, among the ten best."""
    identical_top_10: int
    """Users whose ten best are the same, in the same order."""

    @property
    def holds(self) -> bool:
        return (
            max(self.max_query_difference, self.max_score_difference) <= TOLERANCE
            and self.identical_top_10 == self.users
        )


class HttpParity(Config):
    """The HTTP answer against training, over the reference users."""

    users: int
    max_score_difference: float
    """Largest absolute difference of a score, by place in the ten best."""
    identical_top_10: int
    """Users whose ten best are the same, in the same order."""

    @property
    def holds(self) -> bool:
        return self.max_score_difference <= TOLERANCE and self.identical_top_10 == self.users


async def triton_parity(bundle: Bundle, version: int, address: str, progress: Progress) -> TritonParity:
    """Encode every reference user and rank the reference candidates through Triton.

    Raises:
        TritonError: Triton does not answer.
    """
    client = TritonClient(address)
    lookup, ranking = EmbeddingLookup(bundle, client, version), Ranking(bundle, client, version)

    async def compare(user: dict[str, Any]) -> tuple[float, float, bool]:
        at = RequestTime.read(user["timestamp_ms"])
        query = await lookup.run(RecommendRequest(user_id=user["user_id"]), at)
        if query.degraded:
            raise TritonError(QUERY_ENCODER, "UNAVAILABLE", f"no answer for user {user['user_id']}")
        assert query.query_D is not None, f"user {user['user_id']} has no history in the bundle"
        candidates = Candidates(
            np.array(user["candidate_rows"]), np.array(user["candidate_scores"], dtype=np.float32), found=()
        )
        scores_C = await ranking.run(query, candidates, at)
        best_K = np.argsort(-scores_C, kind="stable")[: len(user["top_rows"])]
        same = candidates.rows_C[best_K].tolist() == user["top_rows"]
        return (
            _difference(query.query_D, user["query"]),
            _difference(scores_C[best_K], user["top_scores"]),
            same,
        )

    try:
        results = await _for_each_user(bundle, compare, "parity of Triton", progress)
    finally:
        await client.close()
    queries, scores, same = zip(*results, strict=True)
    return TritonParity(
        users=len(results),
        max_query_difference=max(queries),
        max_score_difference=max(scores),
        identical_top_10=sum(same),
    )


async def http_parity(bundle: Bundle, url: str, progress: Progress) -> HttpParity:
    """Ask the running service for every reference user's ten best, at the reference time.

    Raises:
        httpx.HTTPError: the service does not answer, or refuses.
    """
    k = min(TOP, bundle.manifest.num_items)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:

        async def compare(user: dict[str, Any]) -> tuple[float, bool]:
            request = {"user_id": user["user_id"], "k": k, "context": {"timestamp_ms": user["timestamp_ms"]}}
            answer = (await client.post("/v1/recommend", json=request)).raise_for_status().json()
            items = answer["items"]
            same = [item["item_id"] for item in items] == bundle.item_ids.ids(np.array(user["top_rows"]))
            return _difference([item["score"] for item in items], user["top_scores"]), same

        results = await _for_each_user(bundle, compare, "parity of HTTP", progress)
    scores, same = zip(*results, strict=True)
    return HttpParity(users=len(results), max_score_difference=max(scores), identical_top_10=sum(same))


def _difference(values: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Largest absolute difference; infinite when there are more values on one side, or one is not a number."""
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float(np.finfo(np.float64).max)
    return float(np.abs(ours - theirs).max(initial=0.0))


async def _for_each_user(
    bundle: Bundle, compare: Callable[[dict[str, Any]], Awaitable[Any]], stage: str, progress: Progress
) -> list[Any]:
    """`compare` for every reference user, a few at a time, results in user order."""
    users = bundle.reference().to_pylist()
    assert users, f"{bundle.path}/reference.arrow is empty"
    done = 0
    free = asyncio.Semaphore(_CONCURRENCY)

    async def one(user: dict[str, Any]) -> Any:
        nonlocal done
        async with free:
            result = await compare(user)
        done += 1
        progress(stage, done, len(users))
        return result

    return await asyncio.gather(*(one(user) for user in users))
