"""Each stage alone, with the networks on ONNX Runtime in this process."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.arrays import Float32Array, Int64Array
from passerelle.bundle import Bundle
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.topk import exact_topk
from serving.item_info import UnknownItemError
from serving.recommender import Recommender
from serving.schemas.recommend import ConflictError, Context, RecommendRequest, SimilarRequest
from serving.stages.lookup import EmbeddingLookup
from serving.stages.ordering import Ordering
from serving.stages.ranking import Ranking
from serving.stages.retrieval import Retrieval
from serving.stages.types import PERSONAL, Candidates, Found, Query, RequestTime
from tests.support.bundles import encoder_inputs
from tests.support.filters import CONDITIONS, meets
from tests.support.inference import MAX_BATCH_SIZE, OnnxInference

NOW_MS = 1_700_000_000_000
NOW = RequestTime(NOW_MS, NOW_MS)
NOTHING = np.empty(0, dtype=np.int64)


def personal(rows_C: Int64Array, scores_C: Float32Array) -> Candidates:
    """Returns candidates of the personal source alone."""
    return Candidates(rows_C, scores_C, (Found(PERSONAL, rows_C, scores_C),))


def look_up(bundle: Bundle, **request: Any) -> Query:
    """Runs the lookup stage with a fresh inference."""
    return asyncio.run(
        EmbeddingLookup(bundle, OnnxInference(bundle), 1).run(RecommendRequest(**request), NOW)
    )


def test_lookup_agrees_with_the_reference(bundle: Bundle) -> None:
    for user in bundle.reference().users():
        request = RecommendRequest(user_id=user.user_id)
        query = asyncio.run(
            EmbeddingLookup(bundle, OnnxInference(bundle), 1).run(
                request, RequestTime.read(user.timestamp_ms)
            )
        )
        history = bundle.history(bundle.user_ids.row(user.user_id)).item_rows_L.tolist()
        assert (
            query.history_L.tolist() == history
            and query.seen_S.tolist() == sorted(set(history))
            and query.encode_ms > 0
        )
        assert query.query_D is not None
        np.testing.assert_allclose(query.query_D, user.query_D, atol=1e-5)


def test_history_in_the_request_wins_and_unknown_items_are_counted(bundle: Bundle) -> None:
    query = look_up(bundle, user_id=1000, history=[17, 999, "27", 18, 17])
    assert (
        query.history_L.tolist() == [3, 4, 3]
        and query.ignored_history == 2
        and query.seen_S.tolist() == [3, 4]
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"history_event_types": ["view", "buy"]},
            r"history_event_types: no 'buy' among the events of this model: view",
        ),
        ({"user_features": {"age": 3}}, r"user_features: the model does not read age; it reads none"),
        (
            {"context": {"features": {"device": "mobile"}}},
            r"context.features: the model does not read device; it reads none",
        ),
    ],
)
def test_unknown_event_types_and_features_are_named(
    bundle: Bundle, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        look_up(bundle, history=[17, 27], **request_)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            RecommendRequest(history=(1, 2), history_event_types=("view",)),
            "history_event_types has 1 values for the 2 items of history",
        ),
        (
            RecommendRequest(history=(1, 2, 3), history_timestamps_ms=(1, 2)),
            "history_timestamps_ms has 2 values for the 3 items of history",
        ),
        (RecommendRequest(history_timestamps_ms=(1,)), "has 1 values for the 0 items of history"),
    ],
)
def test_lists_of_a_history_are_as_long(request_: RecommendRequest, message: str) -> None:
    with pytest.raises(ConflictError, match=message):
        request_.require_one_value_an_item()


def test_times_reach_the_encoder(bundle: Bundle) -> None:
    """The times of the request's known items, and the time of the request itself."""
    times = [NOW_MS - 10**10, NOW_MS - 10**9, NOW_MS - 10**8]
    query = look_up(bundle, history=[17, 999, 27], history_timestamps_ms=times)
    inputs = encoder_inputs(bundle.vectors_RD[[3, 4]][None], np.array([[times[0], times[2]]]), NOW_MS)
    expected_BD = asyncio.run(OnnxInference(bundle).infer("query_encoder", 1, inputs))["query"]
    assert query.query_D is not None
    np.testing.assert_allclose(query.query_D, expected_BD[0], atol=1e-5)
    assert not np.allclose(query.query_D, look_up(bundle, history=[17, 27]).query_D, atol=1e-2)


def test_history_vectors_of_the_bundle_are_used(bundle: Bundle) -> None:
    other = replace(bundle, history_vectors_RD=np.flip(bundle.vectors_RD, axis=1).copy())
    times = [NOW_MS - 10**9, NOW_MS - 10**8]
    inputs = encoder_inputs(other.history_vectors_RD[[3, 4]][None], np.array([times]), NOW_MS)
    expected_BD = asyncio.run(OnnxInference(bundle).infer("query_encoder", 1, inputs))["query"]
    query = look_up(other, history=[17, 27], history_timestamps_ms=times)
    assert query.query_D is not None
    np.testing.assert_allclose(query.query_D, expected_BD[0], atol=1e-5)


def test_padding_does_not_change_the_query(bundle: Bundle) -> None:
    inference = OnnxInference(bundle)
    lookup = EmbeddingLookup(bundle, inference, 1)
    history = [7 + 10 * position for position in range(24)]
    for length in (1, 15, 16, 17, 24):
        query = asyncio.run(lookup.run(RecommendRequest(history=tuple(history[:length])), NOW))
        rows_L = np.arange(length) + FIRST_ITEM_ROW
        a_minute_apart_L = NOW_MS - 60_000 * np.arange(length, 0, -1)
        inputs = encoder_inputs(bundle.vectors_RD[rows_L][None], a_minute_apart_L[None], NOW_MS)
        expected = asyncio.run(inference.infer("query_encoder", 1, inputs))["query"][0]
        assert query.query_D is not None
        np.testing.assert_allclose(query.query_D, expected, atol=1e-5)
    assert [shape[1] for shape in inference.shapes[::2]] == [
        16,
        16,
        16,
        24,
        24,
    ]  # a power of two, or the longest history


def test_long_history_is_truncated_for_the_query_but_seen_whole(bundle: Bundle) -> None:
    long = look_up(bundle, history=tuple(7 + 10 * (position % 300) for position in range(10_000)))
    short = look_up(bundle, history=tuple(7 + 10 * (position % 300) for position in range(9_976, 10_000)))
    assert len(long.history_L) == bundle.manifest.max_history == 24 and len(long.seen_S) == 300
    np.testing.assert_array_equal(long.query_D, short.query_D)


@pytest.mark.parametrize(
    "request_", [{}, {"user_id": 5}, {"user_id": 1000, "history": ()}, {"history": (1, 2, 3)}]
)
def test_no_query_without_known_items(bundle: Bundle, request_: dict[str, Any]) -> None:
    query = look_up(bundle, **request_)
    assert (
        query.query_D is None
        and not len(query.history_L)
        and query.ignored_history == len(request_.get("history", ()))
    )


def test_exclude_seen_can_be_switched_off(bundle: Bundle) -> None:
    query = look_up(bundle, user_id=1000, exclude_seen=False)
    assert not len(query.seen_S) and len(query.history_L)


def test_ids_of_the_wrong_type_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"history\.1: item_id 'x': this catalogue's ids are integers"):
        look_up(bundle, history=(7, "x"))
    with pytest.raises(UserError, match="user_id: user_id 'ann'"):
        look_up(bundle, user_id="ann")


@given(
    st.lists(CONDITIONS, max_size=2),
    st.sets(st.integers(2, 301), max_size=290),
    st.integers(0, 2**32 - 1),
    st.integers(1, 120),
)
def test_retrieval_against_a_row_by_row_definition(
    bundle: Bundle, conditions: list[Any], seen: set[int], seed: int, k: int
) -> None:
    query_D = np.random.default_rng(seed).standard_normal(64).astype(np.float32)
    seen_S = np.array(sorted(seen), dtype=np.int64)
    request = RecommendRequest(k=k, filters=tuple(conditions))
    found = asyncio.run(Retrieval(bundle).run(request, Query(seen_S, seen_S, query_D, 0, 0.0), NOW))
    items = bundle.items.to_pylist()
    allowed = [
        row
        for row in range(2, 302)
        if row not in seen and all(meets(items[row - 2], condition) for condition in conditions)
    ]
    expected = sorted(allowed, key=lambda row: -float(bundle.vectors_RD[row].astype(np.float64) @ query_D))
    assert (
        found.rows_C.tolist() == expected[: max(k, bundle.manifest.num_candidates)]
        and found.found[0].source == PERSONAL
    )
    np.testing.assert_allclose(found.scores_C, bundle.vectors_RD[found.rows_C] @ query_D, atol=1e-5)

    popular = asyncio.run(Retrieval(bundle).run(request, Query(seen_S, seen_S, None, 0, 0.0), NOW))
    assert (
        popular.rows_C.tolist()
        == sorted(allowed, key=lambda row: -bundle.counts_R[row])[: max(k, bundle.manifest.num_candidates)]
    )
    assert popular.fallback == "popular"
    assert popular.scores_C.tolist() == bundle.counts_R[popular.rows_C].tolist()


def test_similar_items_by_cosine(bundle: Bundle) -> None:
    retrieval = Retrieval(bundle)
    unit_RD = bundle.vectors_RD / np.maximum(np.linalg.norm(bundle.vectors_RD, axis=1, keepdims=True), 1e-30)
    for row in (2, 150, 301):
        others_1R = np.ones((1, 302), dtype=bool)
        others_1R[0, row] = False
        rows_1K, cosines_1K = exact_topk(unit_RD[row][None], unit_RD, 5, others_1R)
        found = asyncio.run(retrieval.similar(SimilarRequest(item_id=0), [row], 5, NOW))
        assert found.rows_C.tolist() == rows_1K[0].tolist()
        np.testing.assert_allclose(found.scores_C, cosines_1K[0], atol=1e-5)


def test_ranking_splits_candidates_into_batches(bundle: Bundle) -> None:
    inference = OnnxInference(bundle)
    rows_C, history_L = np.arange(2, 202), np.array([5, 9])
    candidates = personal(rows_C, np.linspace(1, 0, 200, dtype=np.float32))
    scores_C = asyncio.run(
        Ranking(bundle, inference, 1).run(Query(history_L, NOTHING, None, 0, 0.0), candidates, NOW)
    )
    assert [shape[0] for shape in inference.shapes] == [MAX_BATCH_SIZE] * 3 + [200 - 3 * MAX_BATCH_SIZE]
    assert scores_C.shape == (200,) and len(np.unique(scores_C)) > 100


def test_ranking_without_candidates(bundle: Bundle) -> None:
    candidates = personal(NOTHING, np.empty(0, dtype=np.float32))
    query = Query(np.array([5]), NOTHING, None, 0, 0.0)
    assert asyncio.run(Ranking(bundle, OnnxInference(bundle), 1).run(query, candidates, NOW)).shape == (0,)


def test_ranking_refuses_other_features(bundle: Bundle) -> None:
    names = tuple(reversed(bundle.manifest.features))
    other = Bundle(**{**bundle.__dict__, "manifest": bundle.manifest.updated(features=names)})
    with pytest.raises(
        UserError, match=r"other features than this code computes \(their order\): train and export again"
    ):
        Ranking(other, OnnxInference(bundle), 1)


def test_ordering_breaks_ties_by_retrieval(bundle: Bundle) -> None:
    candidates = personal(np.array([10, 11, 12, 13]), np.array([4, 3, 2, 1], dtype=np.float32))
    items = asyncio.run(
        Ordering(bundle).run(candidates, np.array([0.5, 0.9, 0.5, 0.9], dtype=np.float32), 3, NOW)
    )
    assert [item.item_id for item in items] == [97, 117, 87] and [item.rank for item in items] == [1, 2, 3]
    assert [(source.name, source.rank, source.score) for item in items for source in item.sources] == [
        (PERSONAL, 2, 3.0),
        (PERSONAL, 4, 1.0),
        (PERSONAL, 1, 4.0),
    ]


def test_recommendations_agree_with_the_reference(bundle: Bundle, recommender: Recommender) -> None:
    for user in bundle.reference().users():
        request = RecommendRequest(user_id=user.user_id, context=Context(timestamp_ms=user.timestamp_ms))
        answer = asyncio.run(recommender.recommend(request))
        assert [item.item_id for item in answer.items] == bundle.item_ids.ids(user.top_rows_K)
        np.testing.assert_allclose([item.score for item in answer.items], user.top_scores_K, atol=1e-6)
        assert answer.fallback is None and answer.model_version == 7
        timings = answer.timings_ms
        assert 0 < timings.lookup + timings.encode + timings.retrieval + timings.ranking <= timings.total


def test_time_of_the_request_reaches_the_ranker(recommender: Recommender) -> None:
    def scores(timestamp_ms: int) -> list[float]:
        request = RecommendRequest(user_id=1000, context=Context(timestamp_ms=timestamp_ms))
        return [item.score for item in asyncio.run(recommender.recommend(request)).items]

    assert scores(0) == scores(0) != scores(5 * 3_600_000)


def test_string_ids_through_all_stages(unicode_bundle: Bundle, unicode_recommender: Recommender) -> None:
    answer = asyncio.run(
        unicode_recommender.recommend(RecommendRequest(history=("商品 0", "item-é1", "商品 1"), k=5))
    )
    assert answer.ignored_history == 1 and not {"商品 0", "item-é1"} & {item.item_id for item in answer.items}
    assert all(unicode_bundle.item_ids.row(item.item_id) >= FIRST_ITEM_ROW for item in answer.items)
    assert unicode_recommender.item("商品 4").title == "Title № 4"
    with pytest.raises(UnknownItemError, match="not in the catalogue of 300 items"):
        asyncio.run(unicode_recommender.similar(SimilarRequest(item_id="商品 1")))
