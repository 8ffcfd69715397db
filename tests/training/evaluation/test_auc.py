"""AUC against a slow one.

Shape legend: Q users of a part, B users of a batch, R item rows.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from passerelle.dataset import Dataset
from passerelle.splits import SplitConfig, evaluation_users, make_split
from tests.support.datasets import dataset_of
from tests.support.slow_ranking import GLOBAL_TIME, history_of, slow_auc, targets_of
from training.data.evaluation_batches import EvaluationBatches
from training.evaluation import metric_report as measures
from training.evaluation.metric_report import batch_auc
from training.model.topk import rank_scores


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("chunk_scores", [1, 400, 2**24])
@pytest.mark.parametrize("rule", [SplitConfig(), GLOBAL_TIME], ids=lambda rule: rule.rule)
def test_auc_matches_slow_auc(
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    rule: SplitConfig,
    chunk_scores: int,
    exclude_seen: bool,
) -> None:
    monkeypatch.setattr(measures, "_MAX_SCORES", chunk_scores)
    users = evaluation_users(make_split(dataset, rule), "test")
    # Scores with many ties.
    scores_QR = np.random.default_rng(0).integers(0, 9, (len(users), dataset.num_rows)).astype(np.float32)
    for batch in EvaluationBatches(dataset, users, max_history=5, token_budget=64):
        scores_BR = torch.from_numpy(scores_QR[batch.positions_B])
        rank_scores(scores_BR, batch, 1, exclude_seen=exclude_seen)
        expected = [
            slow_auc(
                scores_QR[position],
                history_of(dataset, users, position) if exclude_seen else [],
                targets_of(dataset, users, position),
            )
            for position in batch.positions_B.tolist()
        ]
        np.testing.assert_allclose(batch_auc(scores_BR, batch), expected, atol=1e-12)


def test_auc_of_excluded_targets(tmp_path: Path) -> None:
    """The test items are 3, 2 (a seen one), and 4 with all other items seen."""
    histories = [[(2, 0), (4, 1), (3, 2)], [(2, 0), (3, 1), (2, 2)], [(2, 0), (3, 1), (4, 2)]]
    dataset = dataset_of(tmp_path / "dataset", histories, num_items=3)
    users = evaluation_users(make_split(dataset, SplitConfig()), "test")
    (batch,) = EvaluationBatches(dataset, users, max_history=5, token_budget=512)
    assert batch.positions_B.tolist() == [0, 1, 2]
    scores_BR = torch.arange(5.0).repeat(3, 1)
    rank_scores(scores_BR, batch, 1)
    assert batch_auc(scores_BR, batch).tolist() == [0.5, 0.0, 0.5]
