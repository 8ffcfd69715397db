"""A sparse table whose rows are shared out over ranks: TorchRec's `DistributedModelParallel`, its optimizer within the backward pass.

It stands where a `SparseTable` does on one rank, and does what that does: a row's gradient is the mean over ranks, as
DistributedDataParallel has it for the other parameters, and one step of row-wise Adagrad follows. Nothing of it is in the module tree, so
DistributedDataParallel, the other parameters' optimizer and `state_dict` know nothing of it; on disk (`training/tables/files.py`) it is
what a `SparseTable` is, and so is read by any number of ranks.

Shape legend: R rows, D width, U rows of a step (each once).
"""

import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from passerelle.errors import UserError
from training.tables.files import Shard
from training.tables.sparse import EPSILON, TABLE, asked_for, empty_collection, fill_rows

RESERVED = 0.15
"""Share of the memory that is left to everything but tables."""


class ShardedTable(nn.Module):
    """Vectors by row, of which this rank holds a stretch.

    Args: as for `SparseTable`; no memory is taken before `place`.
    """

    _parallel: Any = None
    """Not a submodule, though it is a module."""

    def __init__(self, num_rows: int, dim: int, *, std: float, seed: int, learning_rate: float) -> None:
        super().__init__()
        self._shape, self._std, self._seed, self._learning_rate = (num_rows, dim), std, seed, learning_rate

    def place(self, local_world_size: int, device: torch.device) -> None:
        """Share the rows out over the ranks of the process group and fill them; every rank must ask, and asking again does nothing.

        Args:
            local_world_size: ranks of this machine, which share its memory; the same on every machine.
            device: where this rank's rows go. With a GPU it has not been run yet.

        Raises:
            UserError: they do not fit the memory of the ranks together.
        """
        if self._parallel is not None:
            return
        collection = empty_collection(*self._shape)
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel
        from torchrec.distributed.model_parallel import DistributedModelParallel
        from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
        from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
        from torchrec.distributed.planner.types import PlannerError
        from torchrec.distributed.types import ShardingType

        logging.getLogger("torchrec").setLevel(logging.ERROR)  # it recommends a factory that knows no CPUs
        num_rows, dim = self._shape
        fused = {
            "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "learning_rate": self._learning_rate,
            "eps": EPSILON,
        }
        sharder = EmbeddingCollectionSharder(fused_params=fused)
        world_size = dist.get_world_size()
        by_row = ParameterConstraints(
            sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
        )
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // local_world_size
        own_memory = (
            {"hbm_cap": torch.cuda.get_device_properties(device).total_memory}
            if device.type == "cuda"
            else {}
        )
        topology = Topology(
            world_size=world_size,
            local_world_size=local_world_size,
            compute_device=device.type,
            ddr_cap=memory,
            **own_memory,
        )
        planner = EmbeddingShardingPlanner(
            topology=topology,
            constraints={TABLE: by_row},
            storage_reservation=FixedPercentageStorageReservation(percentage=RESERVED),
        )
        try:
            plan = planner.plan(
                collection, [sharder]
            )  # the same on every rank: asked together, the others would not learn of a failure
        except PlannerError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"a table of {num_rows} rows x {dim} does not fit {world_size} workers: {reason}"
            ) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parallel = DistributedModelParallel(
                collection, device=device, plan=plan, sharders=[sharder], init_data_parallel=False
            )
        object.__setattr__(self, "_parallel", parallel)
        for shard in self.shards:
            fill_rows(shard.weight_SD, shard.first_row, self._std, self._seed)

    def forward(self, rows_U: Tensor) -> Tensor:
        """[U, D] of int64 rows; every rank must ask."""
        found = self._parallel(asked_for(rows_U))
        vectors_UD: Tensor = (found.wait() if hasattr(found, "wait") else found)[TABLE].values()
        return vectors_UD

    @property
    def learning_rate_share(self) -> float:
        """What the learning rate is multiplied by, from the next look-up on."""
        return float(self._parallel.fused_optimizer.param_groups[0]["lr"]) / self._learning_rate

    @learning_rate_share.setter
    def learning_rate_share(self, share: float) -> None:
        optimizer = self._parallel.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate * share
        optimizer.step()  # tells the kernels; they take their steps in the backward pass

    @property
    def shards(self) -> list[Shard]:
        """The rows of this rank: one stretch, or none where there are fewer rows than ranks."""
        weight = self._parallel.state_dict()[f"embeddings.{TABLE}.weight"]
        (state,) = self._parallel.fused_optimizer.state_dict()["state"].values()
        pairs = zip(weight.local_shards(), state[f"{TABLE}.momentum1"].local_shards(), strict=True)
        return [
            Shard(rows.metadata.shard_offsets[0], rows.tensor.detach(), sums.tensor.detach())
            for rows, sums in pairs
        ]
