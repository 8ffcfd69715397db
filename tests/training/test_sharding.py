"""Tables shared out over ranks: the steps that one table would take, and a checkpoint that any number of ranks reads.

Shape legend: R rows, D width, N rows asked for.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from passerelle.errors import UserError
from training.sharding import ShardedTable
from training.tables import SparseTable

ROWS, DIM, STEPS = 101, 4, 4
OPTIONS = {"std": 0.1, "seed": 3, "learning_rate": 0.3}
SHARES = (1.0, 0.5, 0.5, 0.25)


def asked(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and the gradient of each, of one of two ranks; one asks for nothing in the third step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    count = 0 if (step, rank) == (2, 1) else 7 + rank
    rows_N = torch.randperm(ROWS, generator=generator)[:count].sort().values
    return rows_N, torch.randn(count, DIM, generator=generator)


def on_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world_size}", rank=rank, world_size=world_size)
    table = ShardedTable(ROWS, DIM, **OPTIONS)
    table.place(world_size)
    found = {"first": table.weight.clone()}
    if world_size == 2:
        for step, share in enumerate(SHARES):
            table.learning_rate_share = share
            assert table.learning_rate_share == pytest.approx(share)
            rows_N, gradient_ND = asked(step, rank)
            vectors_ND = table(rows_N)
            assert torch.equal(vectors_ND.detach(), table.weight[rows_N])
            (vectors_ND * gradient_ND).sum().backward()
    else:
        table.load(torch.load(f"{folder}/two.pt"))
    if rank == 0:
        assert not list(table.parameters()) and not table.state_dict(), "DistributedDataParallel would take them for its own"
    saved = table.saved()
    found |= {"weight": table.weight, **saved}
    assert table.weight is table.weight, "gathered each time it is asked for"
    if rank == 0:
        torch.save(found, f"{folder}/{world_size}-found.pt")
        torch.save(saved, f"{folder}/{ {2: 'two', 4: 'four'}[world_size] }.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_step_as_one_and_four_read_what_they_saved(tmp_path: Path) -> None:
    alone = SparseTable(ROWS, DIM, **OPTIONS)
    first = alone.weight.detach().clone()
    for step, share in enumerate(SHARES):
        alone.learning_rate_share = share
        both = [asked(step, rank) for rank in (0, 1)]
        rows_U, places_N = torch.unique(torch.cat([rows_N for rows_N, _ in both]), return_inverse=True)
        (alone(rows_U)[places_N] * torch.cat([gradient_ND for _, gradient_ND in both])).sum().div(2).backward()
    for world_size in (2, 4):
        torch.multiprocessing.spawn(on_rank, (world_size, str(tmp_path)), nprocs=world_size)
        found = torch.load(tmp_path / f"{world_size}-found.pt")
        assert torch.equal(found["first"], first), "other first vectors than a table on one rank has"
        torch.testing.assert_close(found["weight"], alone.weight.detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found["momentum_R"], alone.momentum_R, atol=1e-6, rtol=1e-5)
    two, four = (torch.load(tmp_path / f"{name}.pt") for name in ("two", "four"))
    assert all(torch.equal(two[name], four[name]) for name in two)
    again = SparseTable(ROWS, DIM, **OPTIONS)
    again.load_state_dict(two)
    assert torch.equal(again.weight.detach(), two["collection.embeddings.item.weight"])


def too_large(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with pytest.raises(UserError, match=r"a table of 100000000000 rows x 64 does not fit 2 workers: .+") as failure:
        ShardedTable(10**11, 64, **OPTIONS).place(2)
    assert "\n" not in str(failure.value)
    dist.destroy_process_group()


def test_a_table_that_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(too_large, (str(tmp_path),), nprocs=2)
