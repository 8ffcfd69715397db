"""Popularity, Markov and item-kNN: tables by hand, and naive versions on the planted dataset.

Shape legend: Q users, I items, C rows of a matrix.
"""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passerelle.calendar_time import DAY_MS
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import Split, SplitConfig, evaluation_users, make_split
from tests.support.baselines import binary, histories_of, ranked, scores_of, training_of
from tests.support.datasets import dataset_of
from training.evaluation.baselines import item_knn
from training.evaluation.baselines.base import order_shares
from training.evaluation.baselines.item_knn import ItemKnn, keep_largest
from training.evaluation.baselines.markov import Markov
from training.evaluation.baselines.popularity import Popularity, RecentPopularity


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Dataset, Split]:
    """Training is all but the last two of each user: 2 3 4 2 3, then 3 4, then 2 3, then 5; the last user's
    two events are too few.
    """
    histories = [[2, 3, 4, 2, 3, 5, 6], [3, 4, 2, 5], [2, 3, 4, 6], [5, 4, 3], [5, 5]]
    days = [
        [(row, 10 * user * DAY_MS + index) for index, row in enumerate(rows)]
        for user, rows in enumerate(histories)
    ]
    dataset = dataset_of(tmp_path / "dataset", days, num_items=5)
    return dataset, make_split(dataset, SplitConfig())


def test_popularity_by_hand(tiny: tuple[Dataset, Split]) -> None:
    """Training counts: 3 four times, 2 and 5 three times, 4 twice, 6 never.

    In the last 15 days 5 alone.
    """
    dataset, split = tiny
    users = evaluation_users(split, "test")
    assert [ranked(row) for row in scores_of(Popularity().fit(dataset, split), dataset, users)] == [
        [3, 2, 5, 4, 6]
    ] * 4
    assert [
        ranked(row) for row in scores_of(RecentPopularity(days=15).fit(dataset, split), dataset, users)
    ] == [[5, 3, 2, 4, 6]] * 4
    # 25 days reach the third user: 5 three times, then 2 and 3 once each, of which 3 is the more popular
    assert ranked(scores_of(RecentPopularity(days=25).fit(dataset, split), dataset, users)[0]) == [
        5,
        3,
        2,
        4,
        6,
    ]
    # validation adds 5, 2, 4 and 4, and all but 6 have four events
    validation_too = replace(split, train_end_U=split.validation_end_U)
    assert ranked(scores_of(Popularity().fit(dataset, validation_too), dataset, users)[0]) == [2, 3, 4, 5, 6]


def test_markov_by_hand(tiny: tuple[Dataset, Split]) -> None:
    """Transitions: 2 to 3 three times, 3 to 4 twice, 4 to 2 once, 5 to 5 once; the rest by counts 3, then 2
    and 5, then 4, then 6.
    """
    dataset, split = tiny
    markov = Markov().fit(dataset, split)
    assert markov._transitions is not None
    assert markov._transitions.toarray().tolist() == [
        [0, 3, 0, 0, 0],
        [0, 0, 2, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0] * 5,
    ]
    # the last items before the test items are 5, 2, 4 and 4
    rankings = [ranked(row) for row in scores_of(markov, dataset, evaluation_users(split, "test"))]
    assert rankings == [[5, 3, 2, 4, 6], [3, 2, 5, 4, 6], [2, 3, 5, 4, 6], [2, 3, 5, 4, 6]]


def test_item_knn_by_hand(tiny: tuple[Dataset, Split]) -> None:
    """Users of 2: first and third; of 3: first, second, third; of 4: first, second; of 5: fourth and fifth;
    of 6: none.
    """
    dataset, split = tiny
    knn = ItemKnn(num_neighbours=1, shrinkage=1.0).fit(dataset, split)
    # 2 and 3 share two users, 3 and 4 two, 2 and 4 one; 3 likes 2 and 4 equally, and 2 is the lower row
    near = 2 / (math.sqrt(6) + 1)
    assert knn._similarity is not None
    np.testing.assert_allclose(
        knn._similarity.toarray(),
        [[0, near, 0, 0, 0], [near, 0, 0, 0, 0], [0, near, 0, 0, 0], [0] * 5, [0] * 5],
    )
    # the first user's history: 2, 3, 4 and 5; ties by counts of users: 3, then 2, 4 and 5 in the order of
    # rows
    first = scores_of(knn, dataset, evaluation_users(split, "test"))[0]
    np.testing.assert_allclose(first[2:], [near, 2 * near, 0, 0, 0], atol=2e-9)
    assert ranked(first) == [3, 2, 4, 5, 6]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_markov_equals_a_naive_implementation(dataset: Dataset, split: Split, part: str) -> None:
    users = evaluation_users(split, "validation" if part == "validation" else "test")
    training = training_of(dataset, split)
    transitions = Counter(pair for rows in training for pair in pairwise(rows))
    counts = Counter(row for rows in training for row in rows)
    scores_QR = scores_of(Markov().fit(dataset, split), dataset, users)
    for index, history in enumerate(histories_of(dataset, users)):
        rows = range(FIRST_ITEM_ROW, dataset.num_rows)
        assert ranked(scores_QR[index]) == sorted(
            rows, key=lambda row: (-transitions[history[-1], row], -counts[row], row)
        )
    assert max(transitions.values()) > 1


@pytest.mark.parametrize(("num_neighbours", "shrinkage"), [(3, 0.0), (10, 5.0), (120, 10.0), (500, 0.0)])
def test_item_knn_equals_a_naive_implementation(
    dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch, num_neighbours: int, shrinkage: float
) -> None:
    monkeypatch.setattr(item_knn, "_CHUNK_VALUES", 7 * dataset.num_items)  # items in chunks of seven
    users = evaluation_users(split, "test")
    seen_UI = binary(training_of(dataset, split), dataset.num_items)
    similarity_II = np.zeros((dataset.num_items, dataset.num_items))
    for one in range(dataset.num_items):
        near = {}
        for other in range(dataset.num_items):
            both = float((seen_UI[:, one] * seen_UI[:, other]).sum())
            if one != other and both:
                near[other] = both / (math.sqrt(seen_UI[:, one].sum() * seen_UI[:, other].sum()) + shrinkage)
        for other in sorted(near, key=lambda item: (-near[item], item))[:num_neighbours]:
            similarity_II[one, other] = near[other]
    fitted = ItemKnn(num_neighbours, shrinkage).fit(dataset, split)
    assert fitted._similarity is not None
    np.testing.assert_allclose(fitted._similarity.toarray(), similarity_II, rtol=1e-12)
    expected = binary(histories_of(dataset, users), dataset.num_items) @ similarity_II
    scores_QR = scores_of(fitted, dataset, users)
    np.testing.assert_allclose(scores_QR[:, FIRST_ITEM_ROW:], expected, atol=2e-9)
    assert all(ranked(scores_R) for scores_R in scores_QR)


@given(st.integers(0, 999), st.integers(1, 9))
def test_keep_largest_breaks_ties_by_column(seed: int, count: int) -> None:
    values_CI = np.random.default_rng(seed).integers(0, 4, (3, 7)).astype(np.float64)  # many ties
    kept_CI = keep_largest(values_CI.copy(), count)
    for values, kept in zip(values_CI.tolist(), kept_CI.tolist(), strict=True):
        chosen = sorted(range(7), key=lambda index: (-values[index], index))[:count]
        assert kept == [value if index in chosen else 0 for index, value in enumerate(values)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9))
def test_order_shares_are_ranks(counts: list[tuple[int, int]]) -> None:
    first, second = np.array(counts).T
    order = sorted(range(len(counts)), key=lambda row: (-counts[row][0], -counts[row][1], row))
    assert np.argsort(-order_shares(first, second)).tolist() == order
    assert order_shares(first, second).max() == 1.0 and order_shares(first, second).min() > 0
