"""Evaluation batches: the partition of users over ranks, and the size of a batch."""

import pytest

from passerelle.dataset import Dataset
from passerelle.splits import Split, evaluation_users
from tests.support.slow_ranking import history_of, targets_of
from training.data import evaluation_batches
from training.data.evaluation_batches import EvaluationBatches


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("token_budget", [1, 40, 512, 10**6])
def test_ranks_partition_the_users(
    dataset: Dataset, split: Split, world_size: int, token_budget: int
) -> None:
    """Each user is in one batch, with the newest items, seen items and targets; no rank is empty."""
    users, max_history = evaluation_users(split, "test"), 7
    positions = []
    for rank in range(world_size):
        batches = EvaluationBatches(
            dataset,
            users,
            max_history=max_history,
            token_budget=token_budget,
            rank=rank,
            world_size=world_size,
        )
        assert len(batches) == len(list(batches)) > 0
        for batch in batches:
            assert (
                len(batch.positions_B) * (batch.histories.items_BL.shape[1] + 1) <= token_budget
                or len(batch.positions_B) == 1
            )
            for row, position in enumerate(batch.positions_B.tolist()):
                history, items = history_of(dataset, users, position), batch.histories.items_BL[row].tolist()
                assert items == [0] * (len(items) - len(history[-max_history:])) + history[-max_history:]
                assert batch.seen_item_S[batch.seen_row_S == row].tolist() == history
                start, end = batch.relevant_offsets_B1[row : row + 2]
                assert batch.relevant_rows_G[start:end].tolist() == targets_of(dataset, users, position)
            positions += batch.positions_B.tolist()
    assert sorted(positions) == list(range(len(users)))


def test_every_rank_gets_a_batch(dataset: Dataset, split: Split) -> None:
    """With one batch for two ranks: a rank without a batch would make the others wait for ever."""
    users = evaluation_users(split, "validation").take(slice(0, 3))
    shares = [
        EvaluationBatches(dataset, users, max_history=12, token_budget=512, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    assert [[len(batch.positions_B) for batch in batches] for batches in shares] == [[2], [1]]


def test_batch_size_is_bounded_by_catalogue_size(
    dataset: Dataset, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_batches, "_MAX_SCORES", 10 * dataset.num_rows)
    batches = EvaluationBatches(dataset, evaluation_users(split, "test"), max_history=12, token_budget=10**6)
    assert {len(batch.positions_B) for batch in batches} == {10}
