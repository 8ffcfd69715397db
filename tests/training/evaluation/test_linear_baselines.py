"""EASE and iALS solve the problems they state, and refuse what memory would not hold.

Shape legend: U users, I items, F factors.
"""

from dataclasses import replace

import numpy as np
import pytest

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import Split, evaluation_users
from tests.support.baselines import binary, histories_of, scores_of, training_of
from training.evaluation.baselines import ease as ease_module
from training.evaluation.baselines.ease import Ease
from training.evaluation.baselines.ials import ImplicitAls


def test_ease_equals_ridge_regressions(
    dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_ease_refuses_large_catalogues(dataset: Dataset, split: Split) -> None:
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


def test_ials_user_factors_are_ridge_solutions(dataset: Dataset, split: Split) -> None:
    """The factors of a user, from the whole history, are the ridge solution with seen items weighted by the
    confidence.
    """
    users = evaluation_users(split, "test")
    ials = ImplicitAls(factors=8, regularization=0.5, confidence=4.0, iterations=3).fit(dataset, split)
    scores_QR = scores_of(ials, dataset, users)
    assert ials._model is not None
    items_IF = ials._model.item_factors.astype(np.float64)
    for index, history in enumerate(histories_of(dataset, users)):
        seen_I = binary([history], dataset.num_items)[0]
        weights_I = np.where(seen_I > 0, 4.0, 1.0)
        user_F = np.linalg.solve(
            items_IF.T @ (weights_I[:, None] * items_IF) + 0.5 * np.eye(8), items_IF.T @ (weights_I * seen_I)
        )
        np.testing.assert_allclose(scores_QR[index, FIRST_ITEM_ROW:], items_IF @ user_F, atol=1e-4)


def test_ials_item_factors_converge_to_ridge_solutions(dataset: Dataset, split: Split) -> None:
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
