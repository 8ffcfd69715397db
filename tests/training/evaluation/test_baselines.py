"""Baselines: tables by hand, slow obvious versions on the planted dataset, what they may not see, and what
they refuse.

Shape legend: U users, B users of a batch, I items, R item rows (special rows included).
"""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passerelle.arrays import Float64Array
from passerelle.calendar_time import DAY_MS
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import EvaluationUsers, Split, SplitConfig, evaluation_users, make_split
from tests.support.datasets import dataset_of
from training.data.evaluation_batches import EvaluationBatches
from training.evaluation.baselines import BASELINES, item_knn, make_baselines
from training.evaluation.baselines import ease as ease_module
from training.evaluation.baselines.base import Baseline, hyper_parameters, order_shares
from training.evaluation.baselines.ease import Ease
from training.evaluation.baselines.ials import ImplicitAls
from training.evaluation.baselines.item_knn import ItemKnn, keep_largest
from training.evaluation.baselines.markov import Markov
from training.evaluation.baselines.popularity import Popularity, RecentPopularity
from training.evaluation.evaluate import rank_users, ranking_metrics


def scores_of(
    baseline: Baseline, dataset: Dataset, users: EvaluationUsers, max_history: int = 5
) -> Float64Array:
    """Scores [Q, R] in the order of `users`, from several batches of a few users."""
    scores_QR = np.full((len(users), dataset.num_rows), np.nan)
    for batch in EvaluationBatches(dataset, users, max_history=max_history, token_budget=64):
        scores_BR = baseline(batch)
        assert scores_BR.dtype == torch.float64
        scores_QR[batch.positions_B] = scores_BR.numpy()
    return scores_QR


def training_of(dataset: Dataset, split: Split) -> list[list[int]]:
    return [
        dataset.item_rows_E[start:end].tolist()
        for start, end in zip(split.start_U, split.train_end_U, strict=True)
    ]


def histories_of(dataset: Dataset, users: EvaluationUsers) -> list[list[int]]:
    return [
        dataset.item_rows_E[start:end].tolist()
        for start, end in zip(users.history_start_Q, users.history_end_Q, strict=True)
    ]


def ranked(scores_R: Float64Array) -> list[int]:
    """Item rows, best first; no two may be equal."""
    assert len(np.unique(scores_R[FIRST_ITEM_ROW:])) == len(scores_R) - FIRST_ITEM_ROW
    return (np.argsort(-scores_R[FIRST_ITEM_ROW:]) + FIRST_ITEM_ROW).tolist()


def binary(histories: list[list[int]], num_items: int) -> Float64Array:
    matrix = np.zeros((len(histories), num_items))
    for user, rows in enumerate(histories):
        for row in rows:
            matrix[user, row - FIRST_ITEM_ROW] = 1
    return matrix


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Dataset, Split]:
    """Training is all but the last two of each user: 2 3 4 2 3, then 3 4, then 2 3, then 5; the last user's
    two events are too few.
    """
    histories = [[2, 3, 4, 2, 3, 5, 6], [3, 4, 2, 5], [2, 3, 4, 6], [5, 4, 3], [5, 5]]
    days = [
        [(row, 10 * user * DAY_MS + place) for place, row in enumerate(rows)]
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
def test_markov_equals_the_slow_one(dataset: Dataset, split: Split, part: str) -> None:
    users = evaluation_users(split, "validation" if part == "validation" else "test")
    training = training_of(dataset, split)
    transitions = Counter(pair for rows in training for pair in pairwise(rows))
    counts = Counter(row for rows in training for row in rows)
    scores_QR = scores_of(Markov().fit(dataset, split), dataset, users)
    for place, history in enumerate(histories_of(dataset, users)):
        rows = range(FIRST_ITEM_ROW, dataset.num_rows)
        assert ranked(scores_QR[place]) == sorted(
            rows, key=lambda row: (-transitions[history[-1], row], -counts[row], row)
        )
    assert max(transitions.values()) > 1


@pytest.mark.parametrize(("num_neighbours", "shrinkage"), [(3, 0.0), (10, 5.0), (120, 10.0), (500, 0.0)])
def test_item_knn_equals_the_slow_one(
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
def test_largest_of_a_row(seed: int, count: int) -> None:
    values_CI = np.random.default_rng(seed).integers(0, 4, (3, 7)).astype(np.float64)  # many ties
    kept_CI = keep_largest(values_CI.copy(), count)
    for values, kept in zip(values_CI.tolist(), kept_CI.tolist(), strict=True):
        chosen = sorted(range(7), key=lambda place: (-values[place], place))[:count]
        assert kept == [value if place in chosen else 0 for place, value in enumerate(values)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9))
def test_order_shares_are_ranks(counts: list[tuple[int, int]]) -> None:
    first, second = np.array(counts).T
    order = sorted(range(len(counts)), key=lambda row: (-counts[row][0], -counts[row][1], row))
    assert np.argsort(-order_shares(first, second)).tolist() == order
    assert order_shares(first, second).max() == 1.0 and order_shares(first, second).min() > 0


def test_ease_solves_its_problem(dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Column by column it is a ridge regression of the item on all other items, which leaves its own weight
    at zero.
    """
    monkeypatch.setattr(ease_module, "_CHUNK_VALUES", 11 * dataset.num_items)
    users, num_items, regularization = evaluation_users(split, "test"), dataset.num_items, 3.0
    seen_UI = binary(training_of(dataset, split), num_items)
    weights_II = np.zeros((num_items, num_items))
    for item in range(num_items):
        others = [other for other in range(num_items) if other != item]
        design = seen_UI[:, others]
        weights_II[others, item] = np.linalg.solve(
            design.T @ design + regularization * np.eye(num_items - 1), design.T @ seen_UI[:, item]
        )
    expected = binary(histories_of(dataset, users), num_items) @ weights_II
    scores_QR = scores_of(Ease(regularization).fit(dataset, split), dataset, users)
    np.testing.assert_allclose(scores_QR[:, FIRST_ITEM_ROW:], expected, atol=1e-9)


def test_ease_refuses_what_memory_would_not_hold(dataset: Dataset, split: Split) -> None:
    with pytest.raises(
        UserError,
        match=r"120 items are above its limit of 119, and would take about 0 GB of memory: name",
    ):
        Ease(max_items=119).fit(dataset, split)
    large = replace(dataset, items=dataset.items.take(np.zeros(30_001, dtype=np.int64)))
    with pytest.raises(
        UserError, match="30001 items are above its limit of 30000, and would take about 29 GB of memory"
    ):
        Ease().fit(large, split)


def test_ials_users_solve_their_problem(dataset: Dataset, split: Split) -> None:
    """The factors of a user, from the whole history, are the ridge solution with seen items weighted by the
    confidence.
    """
    users = evaluation_users(split, "test")
    ials = ImplicitAls(factors=8, regularization=0.5, confidence=4.0, iterations=3).fit(dataset, split)
    scores_QR = scores_of(ials, dataset, users)
    assert ials._model is not None
    items_IF = ials._model.item_factors.astype(np.float64)
    for place, history in enumerate(histories_of(dataset, users)):
        seen_I = binary([history], dataset.num_items)[0]
        weights_I = np.where(seen_I > 0, 4.0, 1.0)
        user_F = np.linalg.solve(
            items_IF.T @ (weights_I[:, None] * items_IF) + 0.5 * np.eye(8), items_IF.T @ (weights_I * seen_I)
        )
        np.testing.assert_allclose(scores_QR[place, FIRST_ITEM_ROW:], items_IF @ user_F, atol=1e-4)


def test_ials_items_solve_theirs(dataset: Dataset, split: Split) -> None:
    """After many iterations neither side can be improved by solving it once more."""
    ials = ImplicitAls(factors=4, regularization=2.0, confidence=4.0, iterations=200).fit(dataset, split)
    assert ials._model is not None
    users_UF, items_IF = (
        factors.astype(np.float64) for factors in (ials._model.user_factors, ials._model.item_factors)
    )
    seen_UI = binary(training_of(dataset, split), dataset.num_items)
    for item in range(0, dataset.num_items, 5):
        weights_U = np.where(seen_UI[:, item] > 0, 4.0, 1.0)
        system_FF = users_UF.T @ (weights_U[:, None] * users_UF) + 2.0 * np.eye(4)
        np.testing.assert_allclose(
            items_IF[item], np.linalg.solve(system_FF, users_UF.T @ (weights_U * seen_UI[:, item])), atol=5e-3
        )


def test_ials_depends_on_its_seed_alone(dataset: Dataset, split: Split) -> None:
    users = evaluation_users(split, "test")
    first, again, other = (
        scores_of(ImplicitAls(seed=seed).fit(dataset, split), dataset, users) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", BASELINES)
def test_knows_nothing_held_out(dataset: Dataset, split: Split, name: str) -> None:
    """Poison: what is fitted is the same when every held-out event is of another item, and differs when a
    training event is.
    """
    held_out_E = np.ones(len(dataset.item_rows_E), dtype=bool)
    for start, end in zip(split.start_U, split.train_end_U, strict=True):
        held_out_E[start:end] = False
    users = evaluation_users(split, "validation")
    expected = scores_of(BASELINES[name]().fit(dataset, split), dataset, users)
    for poisoned_E, same in ((held_out_E, True), (~held_out_E, False)):
        rows_E = np.where(poisoned_E, FIRST_ITEM_ROW, dataset.item_rows_E).astype(np.int32)
        scores_QR = scores_of(
            BASELINES[name]().fit(replace(dataset, item_rows_E=rows_E), split), dataset, users
        )
        assert np.array_equal(scores_QR, expected) == same


@pytest.mark.parametrize("name", BASELINES)
def test_fitting_again_forgets(dataset: Dataset, split: Split, name: str) -> None:
    users = evaluation_users(split, "test")
    twice = BASELINES[name]().fit(dataset, replace(split, train_end_U=split.test_end_U)).fit(dataset, split)
    assert np.array_equal(
        scores_of(twice, dataset, users), scores_of(BASELINES[name]().fit(dataset, split), dataset, users)
    )


@pytest.mark.parametrize("name", BASELINES)
def test_scores_are_the_callers_to_overwrite(dataset: Dataset, split: Split, name: str) -> None:
    baseline, users = BASELINES[name]().fit(dataset, split), evaluation_users(split, "test")
    batch = next(iter(EvaluationBatches(dataset, users, max_history=5, token_budget=512)))
    before = baseline(batch).clone()
    baseline(batch).fill_(float("-inf"))
    assert torch.equal(baseline(batch), before)
    assert before.shape == (len(batch.positions_B), dataset.num_rows)


def test_who_reads_order_beats_who_does_not(dataset: Dataset, split: Split) -> None:
    """The planted dataset is a ring that users follow: the last item says what is next, popularity says
    nothing.
    """
    users = evaluation_users(split, "test")
    values = {}
    for name, baseline in make_baselines(("all",)).items():
        rows_QK, _ = rank_users(dataset, users, baseline.fit(dataset, split), 10, max_history=12)
        values[name] = ranking_metrics(dataset, users, rows_QK, (10,))["ndcg@10"]
    assert (
        min(values["markov"], values["item_knn"], values["ease"], values["ials"]) > 2 * values["popularity"]
    )
    assert max(values, key=lambda name: values[name]) == "markov"


def test_chosen_by_name() -> None:
    assert list(make_baselines(("markov", "popularity"))) == ["markov", "popularity"]
    assert list(make_baselines(("popularity", "all"))) == list(BASELINES)
    with pytest.raises(
        UserError,
        match="baseline 'top': not one of popularity, recent_popularity, markov, item_knn, ease, ials, nor",
    ):
        make_baselines(("popularity", "top"))
    with pytest.raises(
        UserError, match="--recent-days 7 has no effect without the baseline recent_popularity"
    ):
        make_baselines(("popularity",), recent_days=7)
    assert hyper_parameters(ItemKnn(shrinkage=2.0)) == {"num_neighbours": 100, "shrinkage": 2.0}
    assert hyper_parameters(Popularity()) == {}
