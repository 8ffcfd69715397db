"""What holds for every baseline: no held-out events are learnt, refits start anew, scores may be
overwritten.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import Split, evaluation_users
from tests.support.baselines import scores_of
from training.data.evaluation_batches import EvaluationBatches
from training.evaluation.baselines import BASELINES, make_baselines
from training.evaluation.baselines.base import hyper_parameters
from training.evaluation.baselines.item_knn import ItemKnn
from training.evaluation.baselines.popularity import Popularity
from training.evaluation.evaluate import rank_users, ranking_metrics


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_ignore_held_out_events(dataset: Dataset, split: Split, name: str) -> None:
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
def test_fitting_again_starts_anew(dataset: Dataset, split: Split, name: str) -> None:
    users = evaluation_users(split, "test")
    twice = BASELINES[name]().fit(dataset, replace(split, train_end_U=split.test_end_U)).fit(dataset, split)
    assert np.array_equal(
        scores_of(twice, dataset, users), scores_of(BASELINES[name]().fit(dataset, split), dataset, users)
    )


@pytest.mark.parametrize("name", BASELINES)
def test_callers_may_overwrite_scores(dataset: Dataset, split: Split, name: str) -> None:
    baseline, users = BASELINES[name]().fit(dataset, split), evaluation_users(split, "test")
    batch = next(iter(EvaluationBatches(dataset, users, max_history=5, token_budget=512)))
    before = baseline(batch).clone()
    baseline(batch).fill_(float("-inf"))
    assert torch.equal(baseline(batch), before)
    assert before.shape == (len(batch.positions_B), dataset.num_rows)


def test_order_aware_baselines_beat_popularity(dataset: Dataset, split: Split) -> None:
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


def test_baselines_are_chosen_by_name() -> None:
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
