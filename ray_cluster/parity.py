"""Differences of the served networks, and of HTTP answers, from the reference of the bundle.

Shape legend: D vector width, C candidates, K the best of them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from passerelle.bundle import QUERY_ENCODER, SCORE_TOLERANCE, TOP_K, Bundle, ReferenceUser
from passerelle.config import Config
from passerelle.progress import Progress
from serving.schemas.recommend import RecommendRequest
from serving.stages.lookup import EmbeddingLookup
from serving.stages.ranking import Ranking
from serving.stages.types import Candidates, RequestTime
from serving.triton.client import TritonClient, TritonError

_CONCURRENCY = 8
_TIMEOUT_S = 30.0


class TritonParity(Config):
    """Triton against training, over the reference users."""

    users: int
    max_query_difference: float
    """Largest absolute difference of one component of a query vector."""
    max_score_difference: float
    """Largest absolute difference of a ranker's score, among the best items."""
    identical_top_10: int
    """Users whose best items are the same, in the same order."""

    @property
    def holds(self) -> bool:
        return (
            max(self.max_query_difference, self.max_score_difference) <= SCORE_TOLERANCE
            and self.identical_top_10 == self.users
        )


class HttpParity(Config):
    """The HTTP answer against training, over the reference users."""

    users: int
    max_score_difference: float
    """Largest absolute difference of a score, rank by rank."""
    identical_top_10: int
    """Users whose best items are the same, in the same order."""

    @property
    def holds(self) -> bool:
        return self.max_score_difference <= SCORE_TOLERANCE and self.identical_top_10 == self.users


async def triton_parity(bundle: Bundle, version: int, address: str, progress: Progress) -> TritonParity:
    """Encode every reference user and rank the reference candidates through Triton.

    Raises:
        TritonError: Triton does not answer.
    """
    client = TritonClient(address)
    lookup, ranking = EmbeddingLookup(bundle, client, version), Ranking(bundle, client, version)

    async def compare(user: ReferenceUser) -> tuple[float, float, bool]:
        at = RequestTime.read(user.timestamp_ms)
        query = await lookup.run(RecommendRequest(user_id=user.user_id), at)
        if query.degraded:
            raise TritonError(QUERY_ENCODER, "UNAVAILABLE", f"no answer for user {user.user_id}")
        assert query.query_D is not None, f"user {user.user_id} has no history in the bundle"
        candidates = Candidates(user.candidate_rows_C.astype(np.int64), user.candidate_scores_C, found=())
        scores_C = await ranking.run(query, candidates, at)
        best_K = np.argsort(-scores_C, kind="stable")[: len(user.top_rows_K)]
        same = np.array_equal(candidates.rows_C[best_K], user.top_rows_K)
        return (
            _difference(query.query_D, user.query_D),
            _difference(scores_C[best_K], user.top_scores_K),
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
    """Ask the running service for the best items of every reference user, at the reference time.

    Raises:
        httpx.HTTPError: the service does not answer, or refuses.
    """
    k = min(TOP_K, bundle.manifest.num_items)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as client:

        async def compare(user: ReferenceUser) -> tuple[float, bool]:
            request = {"user_id": user.user_id, "k": k, "context": {"timestamp_ms": user.timestamp_ms}}
            answer = (await client.post("/v1/recommend", json=request)).raise_for_status().json()
            items = answer["items"]
            # Large ids are text in answers.
            same = [str(item["item_id"]) for item in items] == list(
                map(str, bundle.item_ids.ids(user.top_rows_K))
            )
            return _difference([item["score"] for item in items], user.top_scores_K), same

        results = await _for_each_user(bundle, compare, "parity of HTTP", progress)
    scores, same = zip(*results, strict=True)
    return HttpParity(users=len(results), max_score_difference=max(scores), identical_top_10=sum(same))


def _difference(values: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Returns the largest absolute difference; the largest float if shapes
    differ or a value is not finite.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float(np.finfo(np.float64).max)
    return float(np.abs(ours - theirs).max(initial=0.0))


async def _for_each_user(
    bundle: Bundle, compare: Callable[[ReferenceUser], Awaitable[Any]], stage: str, progress: Progress
) -> list[Any]:
    """Returns the results of `compare` for every reference user, a few at a time, in user order."""
    users = bundle.reference().users()
    assert users, f"{bundle.path}: the reference is empty"
    done = 0
    free = asyncio.Semaphore(_CONCURRENCY)

    async def one(user: ReferenceUser) -> Any:
        nonlocal done
        async with free:
            result = await compare(user)
        done += 1
        progress(stage, done, len(users))
        return result

    return await asyncio.gather(*(one(user) for user in users))
