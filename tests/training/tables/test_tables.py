"""The interface that all embedding tables of one rank share, and what checkpoints hold of them.

Shape legend: R rows, D width, U rows of a look-up.
"""

from pathlib import Path

import pytest
import torch

from passerelle.errors import UserError
from passerelle.ids import PADDING_ROW
from training.tables.base import EmbeddingTable
from training.tables.checkpoint import TableCheckpoint, map_table
from training.tables.dense import DenseTable
from training.tables.files import TABLE_KEY
from training.tables.mapped import MappedTable
from training.tables.sparse import SparseTable

ROWS, DIM = 12, 4


def table_of_kind(kind: str, folder: Path) -> EmbeddingTable:
    if kind == "dense":
        return DenseTable(ROWS, DIM, torch.Generator().manual_seed(0))
    if kind == "sparse":
        return SparseTable(ROWS, DIM, std=0.1, seed=3, learning_rate=0.3)
    return MappedTable(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)), folder)


@pytest.mark.parametrize("kind", ["dense", "sparse", "mapped"])
@torch.no_grad()
def test_look_ups_shards_and_all_rows_agree(kind: str, tmp_path: Path) -> None:
    table, rows_U = table_of_kind(kind, tmp_path), torch.tensor([0, 3, 7, 11])
    assert table.holds_all_rows and (table.num_rows, table.dim) == (ROWS, DIM)
    torch.testing.assert_close(table(rows_U), table.all_rows()[rows_U])
    (shard,) = table.shards
    assert shard.first_row == 0 and torch.equal(shard.weight_SD, table.all_rows())
    assert kind == "mapped" or not table.all_rows()[PADDING_ROW].any()


@pytest.mark.parametrize("kind", ["dense", "sparse", "mapped"])
@torch.no_grad()
def test_allocated_tensors_are_separate_and_leave_no_file(kind: str, tmp_path: Path) -> None:
    table = table_of_kind(kind, tmp_path)
    before_RD = table.all_rows().clone()
    copy_RD = table.allocate_like(before_RD)
    copy_RD.copy_(before_RD).add_(1)
    assert copy_RD.shape == (ROWS, DIM) and torch.equal(table.all_rows(), before_RD)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_holds_the_name_of_a_self_managed_table(tmp_path: Path) -> None:
    table = table_of_kind("sparse", tmp_path)
    saving = TableCheckpoint(table, "items.ids")
    saving.directory = tmp_path
    state = {f"items.ids.{name}": value for name, value in table.state_dict().items()}
    first, second, third = ({"state_dict": dict(state)} for _ in range(3))
    saving.save(first, 1)
    saving.save(second, 1)
    saving.save(third, 2)
    assert first["state_dict"] == {} and first[TABLE_KEY] == second[TABLE_KEY] != third[TABLE_KEY]
    saved_RD = table.all_rows().detach().clone()
    with torch.no_grad():
        assert torch.equal(map_table(first, tmp_path).all_rows(), saved_RD)
        table.all_rows().zero_()
        saving.load(first)
        assert torch.equal(table.all_rows(), saved_RD)
    assert set(first["state_dict"]) == set(state) == set(saving.state_names())


def test_checkpoint_leaves_a_dense_table_to_the_state_dict(tmp_path: Path) -> None:
    saving = TableCheckpoint(table_of_kind("dense", tmp_path), "items.ids")
    checkpoint = {"state_dict": {"items.ids.weight": torch.ones(1)}}
    saving.save(checkpoint, 1)
    saving.load(checkpoint)
    assert set(checkpoint) == {"state_dict"} and saving.state_names() == []
    with pytest.raises(UserError, match="the checkpoint of a sparse table was made by an older version"):
        map_table(checkpoint, tmp_path / "checkpoints")
