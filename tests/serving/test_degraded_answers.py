"""Answers that differ from the request: too few found, networks that fail, too little time."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passerelle.bundle import QUERY_ENCODER, RANKER, Bundle
from passerelle.calendar_time import HOUR_MS
from passerelle.errors import UserError
from serving.config import ServingConfig
from serving.deadline import DeadlineError
from serving.retrievers.retriever import Retriever
from serving.schemas.recommend import RecommendRequest, SimilarRequest
from serving.stages.retrieval import Retrieval
from serving.triton.inference import InferenceError
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference
from tests.support.offers import NOW_MS
from tests.support.playlists import ask, config_of, config_with, ids, recommender_with, source
from tests.support.waiting import slow_answer, slow_call

KNOWN_USER = 1003


class Broken(OnnxInference):
    """One network fails, or returns values that are not finite."""

    def __init__(self, bundle: Bundle, model: str, answer: float | None) -> None:
        super().__init__(bundle)
        self._model = model
        self._answer = answer

    async def infer(self, model: str, version: int, inputs: Any, timeout_s: float = 2.0) -> dict[str, Any]:
        outputs = await super().infer(model, version, inputs, timeout_s)
        if model != self._model:
            return outputs
        if self._answer is None:
            raise InferenceError(model, "INTERNAL", "broken")
        return {name: np.full_like(values, self._answer) for name, values in outputs.items()}


def test_cold_users_get_a_full_set_of_candidates(bundle: Bundle) -> None:
    kind_of = dict(
        zip(bundle.items.column("item_id").to_pylist(), bundle.items.column("kind").to_pylist(), strict=True)
    )
    kinds = len({kind for kind in kind_of.values() if kind is not None})
    capped = recommender_with(
        bundle,
        config_with(playlists={"default": {"ordering": {"caps": [{"column": "kind", "max_items": 1}]}}}),
    )
    answer = ask(capped, k=20)
    named = [kind_of[item_id] for item_id in ids(answer) if kind_of[item_id] is not None]
    assert answer.fallback == "popular" and sorted(named) == sorted(set(named)) and len(named) == kinds > 1


def test_popular_items_fill_up_short_answers(bundle: Bundle, offers: Path) -> None:
    few = recommender_with(bundle, config_with(cold_start={"sources": [source("popular", candidates=5)]}))
    assert len(ask(few, k=10).items) == 10
    after = {"timestamp_ms": NOW_MS + 1000 * HOUR_MS}
    soon = recommender_with(bundle, config_of(offers, playlists={"p": {"sources": [source("soon")]}}))
    nothing = ask(soon, user_id=KNOWN_USER, playlist="p", context=after)
    assert len(nothing.items) == 10 and nothing.fallback == "popular"
    three = recommender_with(
        bundle, config_of(offers, playlists={"p": {"sources": [source("soon", candidates=3)]}})
    )
    some = ask(three, user_id=KNOWN_USER, playlist="p")
    assert len(some.items) == 10 and some.fallback is None
    assert {one.name for item in some.items for one in item.sources} == {"soon", "popular"}


@pytest.mark.parametrize("user_id", [None, KNOWN_USER])
def test_backfilled_items_come_last(bundle: Bundle, user_id: int | None) -> None:
    nine = [source("trending", candidates=9)]
    four = [source("popular", candidates=4)]
    playlists = {"p": {"sources": nine, "cold_sources": nine}, "q": {"sources": four, "cold_sources": four}}
    recommender = recommender_with(bundle, config_with(playlists=playlists))
    items = ask(recommender, user_id=user_id, playlist="p", k=12).items
    assert [any(one.name == "trending" for one in item.sources) for item in items] == [True] * 9 + [False] * 3
    again = ask(recommender, user_id=user_id, playlist="q", k=10)
    assert [[one.name for one in item.sources] for item in again.items] == [["popular"]] * 10, (
        "each source once"
    )
    assert sorted(item.sources[0].rank for item in again.items) == list(range(1, 11))


def test_similar_replaces_personal_only_once_without_encoder(bundle: Bundle) -> None:
    sources = [{"kind": "personal"}, {"kind": "similar", "candidates": 40}]
    broken = recommender_of(
        bundle, Broken(bundle, QUERY_ENCODER, None), 7, config_with(playlists={"p": {"sources": sources}})
    )
    found = ask(broken, user_id=KNOWN_USER, playlist="p")
    assert [[one.name for one in item.sources] for item in found.items] == [["similar"]] * 10
    assert all(-1.001 <= item.score <= 1.001 for item in found.items), "cosines"


def test_empty_answer_is_no_fallback(bundle: Bundle) -> None:
    nothing = [{"op": "equals", "column": "kind", "value": "no such kind"}]
    answer = ask(recommender_with(bundle, ServingConfig()), user_id=KNOWN_USER, filters=nothing)
    assert answer.items == () and answer.fallback is None


@pytest.mark.parametrize("answer", [None, float("nan"), float("inf")])
def test_playlist_keeps_its_sources_without_the_query_encoder(bundle: Bundle, answer: float | None) -> None:
    playlists = {
        "trending": {"sources": [{"kind": "trending"}]},
        "both": {"sources": [{"kind": "personal"}, {"kind": "trending"}]},
    }
    broken = recommender_of(
        bundle, Broken(bundle, QUERY_ENCODER, answer), 7, config_with(playlists=playlists)
    )
    for playlist, fallback in (
        ("trending", "trending"),
        ("both", "similar+trending"),
        ("default", "similar"),
    ):
        found = ask(broken, user_id=KNOWN_USER, playlist=playlist)
        assert (found.fallback, found.degraded, len(found.items)) == (fallback, ("query_encoder",), 10)


@pytest.mark.parametrize("answer", [None, float("nan"), float("inf")])
def test_non_finite_ranker_scores_leave_the_order_of_retrieval(bundle: Bundle, answer: float | None) -> None:
    found = ask(recommender_of(bundle, Broken(bundle, RANKER, answer), 7), user_id=KNOWN_USER)
    assert found.degraded == ("ranker",) and found.fallback is None
    assert [item.sources[0].rank for item in found.items] == list(range(1, 11))


def test_retrieval_in_a_thread_finds_the_same_and_keeps_the_deadline(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = recommender_of(bundle, OnnxInference(bundle), 7)
    threaded = recommender_of(bundle, OnnxInference(bundle), 7)
    threaded.stages = replace(threaded.stages, retrieval=Retrieval(bundle, max_inline_items=0))
    for request in ({"user_id": KNOWN_USER}, {}, {"history": [7, 17]}):
        assert ids(ask(threaded, **request)) == ids(ask(recommender, **request))

    def slow(*_: Any, **__: Any) -> Any:
        slow_call(2)
        raise AssertionError("the answer came after the deadline")

    monkeypatch.setattr(Retriever, "search", slow)

    async def seconds_to_deadline_error(coroutine: Any) -> float:
        begun = time.perf_counter()
        with pytest.raises(DeadlineError):
            await coroutine
        return time.perf_counter() - begun

    async def both() -> list[float]:
        recommend = threaded.recommend(
            RecommendRequest.model_validate({"user_id": KNOWN_USER, "deadline_ms": 50})
        )
        return [
            await seconds_to_deadline_error(recommend),
            await seconds_to_deadline_error(threaded.similar(SimilarRequest(item_id=17, deadline_ms=50))),
        ]

    assert max(asyncio.run(both())) < 1.5


def test_hanging_ranker_leaves_time_for_ordering(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every stage takes a round trip."""
    recommender = recommender_of(bundle, OnnxInference(bundle), 7)

    async def hang(*_: Any, **__: Any) -> Any:
        await slow_answer(5)

    def far(run: Any) -> Any:
        async def later(*arguments: Any, **options: Any) -> Any:
            await slow_answer(0.01)
            return await run(*arguments, **options)

        return later

    for stage in (recommender.stages.lookup, recommender.stages.retrieval, recommender.stages.ordering):
        monkeypatch.setattr(stage, "run", far(stage.run))
    monkeypatch.setattr(recommender.stages.ranking, "run", hang)
    answer = ask(recommender, user_id=KNOWN_USER, deadline_ms=400)
    assert answer.degraded == ("ranker",) and len(answer.items) == 10


def test_hanging_ordering_ends_with_the_deadline(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = recommender_of(bundle, OnnxInference(bundle), 7)

    async def hang(*_: Any, **__: Any) -> Any:
        await slow_answer(5)

    monkeypatch.setattr(recommender.stages.ordering, "run", hang)
    begun = time.perf_counter()
    with pytest.raises(DeadlineError):
        ask(recommender, user_id=KNOWN_USER, deadline_ms=50)
    assert time.perf_counter() - begun < 2


def test_k_is_limited_by_max_k(bundle: Bundle) -> None:
    recommender = recommender_with(bundle, config_with(limits={"max_k": 20}))
    assert len(ask(recommender, user_id=KNOWN_USER, k=20).items) == 20
    with pytest.raises(UserError, match=r"k: 21 is more than the 20 items that this service gives at a time"):
        ask(recommender, user_id=KNOWN_USER, k=21)
    assert len(asyncio.run(recommender.similar(SimilarRequest(item_id=17))).items) == 10
    few = recommender_with(bundle, config_with(limits={"max_k": 5}))
    assert len(asyncio.run(few.similar(SimilarRequest(item_id=17))).items) == 5
    with pytest.raises(UserError, match=r"playlists.p.size is 50, limits.max_k 20"):
        config_with(limits={"max_k": 20}, playlists={"p": {"size": 50}})
