"""Reranking functions against slow definitions, and business rules through the ordering stage."""

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.config import ServingConfig
from serving.schemas.recommend import Item
from serving.stages.ordering import Ordering
from serving.stages.reranking import capped, maximal_marginal_relevance, mixed, pinned, unit_range
from serving.stages.types import PERSONAL, PINNED, Candidates, Found, RequestTime

GROUPS = st.lists(st.integers(-1, 4), min_size=1, max_size=40)


@given(GROUPS, st.integers(1, 45), st.integers(2, 6), st.integers(1, 3))
def test_mixing_against_its_definition(groups: list[int], k: int, window: int, max_items: int) -> None:
    """The next item is the first whose group is below its limit, else the first that is left."""
    left, expected = list(range(len(groups))), []
    while left and len(expected) < k:
        recent = [groups[position] for position in expected[-(window - 1) :]]
        below_limit = [
            position
            for position in left
            if groups[position] < 0 or recent.count(groups[position]) < max_items
        ]
        chosen = (below_limit or left)[0]
        expected.append(chosen)
        left.remove(chosen)
    found = mixed(range(len(groups)), np.array(groups), k, window=window, max_items=max_items)
    assert found == expected
    for group in set(groups):
        inside = [position for position in found if groups[position] == group]
        assert inside == sorted(inside), "the ranker's order within a group is kept"


@given(GROUPS, st.integers(1, 4))
def test_caps(groups: list[int], max_items: int) -> None:
    kept = capped(range(len(groups)), np.array(groups), max_items)
    for group in set(groups):
        inside = [position for position, other in enumerate(groups) if other == group]
        assert [position for position in kept if groups[position] == group] == (
            inside if group < 0 else inside[:max_items]
        )
    assert kept == sorted(kept)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 30), st.sampled_from([0.0, 0.3, 0.7, 1.0])
)
def test_marginal_relevance_against_its_definition(seed: int, count: int, k: int, relevance: float) -> None:
    rng = np.random.default_rng(seed)
    scores, vectors = rng.standard_normal(count), rng.standard_normal((count, 6))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-scores).tolist()
    worth = dict(zip(order, unit_range(scores[order]), strict=True))
    expected: list[int] = []
    while len(expected) < min(k, count):
        left = [position for position in order if position not in expected]
        value = [
            relevance * worth[one]
            - (1 - relevance) * max([float(unit[one] @ unit[two]) for two in expected], default=0)
            for one in left
        ]
        expected.append(left[int(np.argmax(np.round(value, 12)))])
    found = maximal_marginal_relevance(order, scores, vectors, k, relevance)
    assert found == expected
    if relevance == 1.0:
        assert found == order[:k]


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 12)),
        max_size=4,
        unique_by=(lambda pin: pin[0], lambda pin: pin[1]),
    )
)
def test_pins_stand_at_their_positions_as_far_as_there_are_items(pins: list[tuple[int, int]]) -> None:
    found = pinned(range(10), pins, 10)
    assert sorted(found) == list(range(10))
    others = [index for index in found if index not in dict(pins)]
    assert others == sorted(others)
    for index, position in pins:
        if position <= 10 - len(pins) + 1:
            assert found[position - 1] == index


def order(
    bundle: Bundle,
    ordering: dict[str, Any],
    rows: list[int],
    scores: list[float],
    k: int,
    pins: list[int] | None = None,
) -> list[Item]:
    config = validate(ServingConfig, {"playlists": {"p": {"ordering": ordering}}}, "test")
    rows_C = np.array(rows)
    found = [Found(PERSONAL, rows_C, np.array(scores, dtype=np.float32))]
    if pins is not None:
        found.append(Found(PINNED, np.array(pins), np.ones(len(pins), dtype=np.float32)))
    candidates = Candidates(rows_C, np.array(scores, dtype=np.float32), tuple(found))
    return list(
        asyncio.run(
            Ordering(bundle, config).run(
                candidates, np.array(scores, dtype=np.float32), k, RequestTime.read(None), "p", debug=True
            )
        )
    )


def test_boosts_margin_and_their_reasons(bundle: Bundle) -> None:
    kinds = bundle.items.column("kind").to_pylist()
    films = [row for row in range(2, 60) if kinds[row - 2] == "film"][:2]
    books = [row for row in range(2, 60) if kinds[row - 2] == "book"][:2]
    boost = {"name": "more books", "when": {"op": "equals", "column": "kind", "value": "book"}, "factor": 3.0}
    rows, scores = [films[0], books[0], films[1], books[1]], [4.0, 3.0, 2.0, 1.0]
    items = order(bundle, {"boosts": [boost]}, rows, scores, 4)
    # brought to 0..1: 1, 2/3, 1/3, 0; books three times: 1, 2, 1/3, 0
    assert [bundle.item_ids.row(item.item_id) for item in items] == [books[0], films[0], films[1], books[1]]
    why = items[0].why
    assert (
        why is not None
        and why.boosts == ("more books",)
        and why.position_by_score == 2
        and why.adjusted_score == pytest.approx(2.0)
    )
    assert [item.score for item in items] == [3.0, 4.0, 2.0, 1.0], "the score is the ranker's own"
    plain = order(bundle, {}, rows, scores, 4)
    assert [bundle.item_ids.row(item.item_id) for item in plain] == rows and all(
        item.why and not item.why.boosts for item in plain
    )
    years = bundle.items.column("year").to_pylist()
    with_margin = order(bundle, {"margin_column": "year"}, rows, scores, 4)
    expected = sorted(
        zip([1, 2 / 3, 1 / 3, 0], rows, strict=True), key=lambda pair: -pair[0] * (years[pair[1] - 2] or 0)
    )
    assert [bundle.item_ids.row(item.item_id) for item in with_margin] == [row for _, row in expected]
    assert with_margin[0].why is not None and with_margin[0].why.margin == years[expected[0][1] - 2]


def test_mixing_caps_and_pins_through_the_stage(bundle: Bundle) -> None:
    kinds = [None, None, *bundle.items.column("kind").to_pylist()]
    rows = [row for row in range(2, 80) if kinds[row] == "film"][:6] + [
        row for row in range(2, 80) if kinds[row] == "book"
    ][:3]
    scores = [float(9 - i) for i in range(9)]
    mixing = {"diversify": "mixing", "mixing": {"column": "kind", "window": 2, "max_items": 1}}
    found = [bundle.item_ids.row(item.item_id) for item in order(bundle, mixing, rows, scores, 4)]
    assert [kinds[row] for row in found] == ["film", "book", "film", "book"] and found == [
        rows[0],
        rows[6],
        rows[1],
        rows[7],
    ]
    found = [
        bundle.item_ids.row(item.item_id)
        for item in order(bundle, {"caps": [{"column": "kind", "max_items": 2}]}, rows, scores, 9)
    ]
    assert found == [rows[0], rows[1], rows[6], rows[7]]
    pin = {"pins": [{"item_id": bundle.item_ids.ids(np.array([rows[8]]))[0], "position": 2}]}
    items = order(bundle, pin, rows, scores, 3, pins=[rows[8]])
    assert [bundle.item_ids.row(item.item_id) for item in items] == [rows[0], rows[8], rows[1]]
    assert (
        items[1].why is not None
        and items[1].why.pinned
        and {source.name for source in items[1].sources} == {PERSONAL, PINNED}
    )
    assert [bundle.item_ids.row(item.item_id) for item in order(bundle, pin, rows, scores, 3)] == rows[:3], (
        "retrieval did not let it through"
    )
