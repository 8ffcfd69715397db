"""Item rows gathered from all ranks.

Shape legend: M positions of this rank, G positions of all ranks together, W ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows_M: Tensor) -> Tensor:
    """int64 [G] rows of every rank, in ascending order: the same on each rank, and for any way to share them
    out.

    Without `torch.distributed`, those of this process.
    Ranks may have different numbers of rows, and none at all.
    Only integers travel: their vectors are looked up in the table, of which each rank has a copy.
    Every rank has to call it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows_M.sort().values
    num_ranks = dist.get_world_size()
    lengths_W = [torch.zeros(1, dtype=torch.int64, device=rows_M.device) for _ in range(num_ranks)]
    dist.all_gather(lengths_W, torch.tensor([len(rows_M)], device=rows_M.device))
    lengths = torch.cat(lengths_W).tolist()
    padded = rows_M.new_zeros(max(lengths))
    padded[: len(rows_M)] = rows_M
    parts = [torch.empty_like(padded) for _ in range(num_ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).sort().values
