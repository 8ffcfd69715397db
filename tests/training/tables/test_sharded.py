"""Sharded tables: their steps are those of one table, and any number of ranks reads their checkpoints.

Shape legend: R rows, D width, N requested rows, B users, X excluded items, K ranked items.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from tests.support.histories import untimed
from tests.support.ranks import run_on_ranks
from training.data.evaluation_batches import EvaluationBatch
from training.model.items import CandidatesShard
from training.model.topk import rank_over_shards, rank_scores
from training.tables.files import Shard, open_table, remove_other_tables, table_files, write_table
from training.tables.sharded import ShardedTable
from training.tables.sparse import SparseTable

ROWS, DIM, STEPS = 101, 4, 4
OPTIONS = {"std": 0.1, "seed": 3, "learning_rate": 0.3}
SCALES = (1.0, 0.5, 0.5, 0.25)


def step_of(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of one of two ranks and their gradients; one rank requests none in the third step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    count = 0 if (step, rank) == (2, 1) else 7 + rank
    rows_N = torch.randperm(ROWS, generator=generator)[:count].sort().values
    return rows_N, torch.randn(count, DIM, generator=generator)


def on_rank(rank: int, world_size: int, folder: str) -> None:
    """Two ranks train and save; four load that and save it again."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store{world_size}", rank=rank, world_size=world_size
    )
    table, checkpoints = ShardedTable(ROWS, DIM, **OPTIONS), Path(folder)
    table.materialize(world_size, torch.device("cpu"))
    first = write_table(checkpoints, ROWS, DIM, table.shards)
    if world_size == 2:
        for step, scale in enumerate(SCALES):
            table.set_learning_rate_scale(scale)
            rows_N, gradient_ND = step_of(step, rank)
            (table(rows_N) * gradient_ND).sum().backward()
    else:
        open_table(checkpoints, json.loads((checkpoints / "2.json").read_text())["trained"]).read_into(
            table.shards
        )
    if rank == 0:
        assert not list(table.parameters()) and not table.state_dict(), (
            "DistributedDataParallel would take them for its own"
        )
    assert sum(len(shard.weight_SD) for shard in table.shards) < ROWS, "a rank holds all rows"
    name = write_table(checkpoints, ROWS, DIM, table.shards)
    whole = open_table(checkpoints, name)
    rows_N, _ = step_of(0, rank)
    assert torch.equal(table(rows_N).detach(), whole.weight_RD[rows_N])
    check_ranking(table.shards, whole.weight_RD, rank)
    if rank == 0:
        (checkpoints / f"{world_size}.json").write_text(json.dumps({"first": first, "trained": name}))
    dist.barrier()
    dist.destroy_process_group()


def check_ranking(shards: list[Shard], weight_RD: torch.Tensor, rank: int) -> None:
    """Checks rankings of users of this rank, one of whom has seen nearly all items."""
    generator = torch.Generator().manual_seed(rank)
    users = 3 + rank
    query_BD = torch.randn(users, DIM, generator=generator)
    seen_BR = torch.rand(users, ROWS, generator=generator) < 0.5
    seen_BR[0, FIRST_ITEM_ROW + 4 :] = True
    user_X, item_X = seen_BR.nonzero(as_tuple=True)
    nothing = np.zeros(0, dtype=np.int64)
    batch = EvaluationBatch(
        untimed(torch.zeros(users, 1, dtype=torch.int64)),
        user_X,
        item_X,
        user_X,
        item_X,
        nothing,
        nothing,
        nothing,
    )
    candidates = [CandidatesShard(shard.first_row, shard.weight_SD) for shard in shards]
    for k in (10, 99):
        expected_BK, _ = rank_scores(query_BD @ weight_RD.T, batch, k)
        assert torch.equal(
            rank_over_shards(query_BD, batch, candidates, k)[:, : expected_BK.shape[1]], expected_BK
        )


def test_sharded_steps_match_one_rank_and_reshard(tmp_path: Path) -> None:
    alone = SparseTable(ROWS, DIM, **OPTIONS)
    first = alone.weight.detach().clone()
    for step, scale in enumerate(SCALES):
        alone.set_learning_rate_scale(scale)
        both = [step_of(step, rank) for rank in (0, 1)]
        rows_U, slot_N = torch.unique(torch.cat([rows_N for rows_N, _ in both]), return_inverse=True)
        (alone(rows_U)[slot_N] * torch.cat([gradient_ND for _, gradient_ND in both])).sum().div(2).backward()
    names = {}
    for world_size in (2, 4):
        run_on_ranks(on_rank, world_size, world_size, str(tmp_path))
        names[world_size] = json.loads((tmp_path / f"{world_size}.json").read_text())
        found = open_table(tmp_path, names[world_size]["trained"])
        assert torch.equal(open_table(tmp_path, names[world_size]["first"]).weight_RD, first), (
            "one rank begins with other vectors"
        )
        torch.testing.assert_close(found.weight_RD, alone.weight.detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.momentum_R, alone.momentum_R, atol=1e-6, rtol=1e-5)
    two, four = (open_table(tmp_path, names[world_size]["trained"]) for world_size in (2, 4))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(two, four, strict=True))
    again = SparseTable(ROWS, DIM, **OPTIONS)
    four.read_into(again.shards)
    assert torch.equal(again.weight.detach(), two.weight_RD) and torch.equal(again.momentum_R, two.momentum_R)


def too_large(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with pytest.raises(
        UserError, match=r"a table of 100000000000 rows x 64 does not fit 2 workers: .+"
    ) as failure:
        ShardedTable(10**11, 64, **OPTIONS).materialize(2, torch.device("cpu"))
    assert "\n" not in str(failure.value)
    dist.destroy_process_group()


def test_table_too_large_for_memory_is_reported(tmp_path: Path) -> None:
    run_on_ranks(too_large, 2, str(tmp_path))


def test_unnamed_tables_are_removed(tmp_path: Path) -> None:
    shards = [Shard(0, torch.ones(3, 2), torch.zeros(3))]
    names = [write_table(tmp_path, 3, 2, shards) for _ in range(3)]
    (tmp_path / "tables" / ".killed").mkdir()
    remove_other_tables(tmp_path, {names[1]})
    assert [path.name for path in (tmp_path / "tables").iterdir()] == [names[1]]
    assert (
        all(path.is_file() for path in table_files(tmp_path, names[1])) and table_files(tmp_path, None) == []
    )


def test_missing_table_files_are_reported(tmp_path: Path) -> None:
    name = write_table(tmp_path, 3, 2, [Shard(0, torch.ones(3, 2), torch.zeros(3))])
    for damage in ("weight.npy", "momentum.npy"):
        (tmp_path / "tables" / name / damage).write_bytes(b"")
        with pytest.raises(
            UserError, match=f"tables/{name}: the table of a checkpoint is missing or damaged"
        ):
            open_table(tmp_path, name)
