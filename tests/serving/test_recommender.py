"""The recommender's use of its stages: one time a request, and readiness."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from passerelle.bundle import RANKER, Bundle
from serving.recommender import Recommender
from serving.schemas.recommend import RecommendRequest, SimilarRequest
from serving.stages.types import RequestTime
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference

KNOWN_USER = 1003


class RecordingStage:
    """Passes calls on to a stage, and records the times among their arguments."""

    def __init__(self, stage: Any, times: list[RequestTime]) -> None:
        self._stage = stage
        self._times = times

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stage, name)

        async def recorded(*arguments: Any, **options: Any) -> Any:
            self._times.extend(one for one in arguments if isinstance(one, RequestTime))
            return await method(*arguments, **options)

        return recorded


def recorded(recommender: Recommender) -> list[RequestTime]:
    """Returns a list that grows by the time of each call of a stage."""
    times: list[RequestTime] = []
    names = ("lookup", "retrieval", "ranking", "ordering")
    stages = {name: RecordingStage(getattr(recommender.stages, name), times) for name in names}
    recommender.stages = replace(recommender.stages, **stages)
    return times


@pytest.mark.parametrize("timestamp_ms", [None, 1_700_000_000_000])
def test_every_stage_gets_the_time_that_was_read_once(bundle: Bundle, timestamp_ms: int | None) -> None:
    recommender = recommender_of(bundle, OnnxInference(bundle), 7)
    times = recorded(recommender)
    context = {"timestamp_ms": timestamp_ms}
    request = RecommendRequest.model_validate({"user_id": KNOWN_USER, "context": context})
    asyncio.run(recommender.recommend(request))
    assert len(times) == 4 and len(set(map(id, times))) == 1
    assert times[0].timestamp_ms == (times[0].now_ms if timestamp_ms is None else timestamp_ms)
    del times[:]
    similar = SimilarRequest.model_validate({"item_id": 17, "context": context})
    asyncio.run(recommender.similar(similar))
    assert len(times) == 2 and len(set(map(id, times))) == 1


def test_ready_when_every_stage_is(bundle: Bundle) -> None:
    class NoRanker(OnnxInference):
        async def ready(self, model: str, version: int) -> bool:
            return model != RANKER

    assert asyncio.run(recommender_of(bundle, OnnxInference(bundle), 7).ready())
    assert not asyncio.run(recommender_of(bundle, NoRanker(bundle), 7).ready())
