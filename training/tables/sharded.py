"""A self-managed table whose rows are sharded over ranks by TorchRec's `DistributedModelParallel`.

It takes the steps that a `SparseTable` takes on one rank.
A row's gradient is the mean over ranks, as DistributedDataParallel has it for the other parameters.
The sharded module is no submodule, so DistributedDataParallel, the model's optimizer and `state_dict` do not
see it.
Its files (`training/tables/files.py`) are those of a `SparseTable`, and any number of ranks can read them.

Shape legend: R rows, D width, U rows of a step (each once).
"""

import logging
import warnings
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from passerelle.errors import UserError
from passerelle.machine import usable_memory_bytes
from training.tables.base import EmbeddingTable
from training.tables.files import Shard
from training.tables.sparse import EPSILON, TABLE, empty_collection, fill_rows, jagged_rows

RESERVED_SHARE = 0.15
"""Share of the memory that the plan leaves to everything but tables."""


class ShardedTable(EmbeddingTable):
    """Vectors by row, of which this rank holds consecutive ones.

    The arguments are those of `SparseTable`; `materialize` allocates the memory.
    """

    holds_all_rows: ClassVar[bool] = False
    is_self_managed: ClassVar[bool] = True

    _parallel: Any = None
    """The sharded module, which is kept out of the module tree."""

    def __init__(self, num_rows: int, dim: int, *, std: float, seed: int, learning_rate: float) -> None:
        super().__init__(num_rows, dim)
        self._std, self._seed, self._learning_rate = std, seed, learning_rate

    def materialize(self, local_world_size: int, device: torch.device) -> None:
        """Shards the rows over the ranks of the process group and initialises them.

        A collective call; repeated calls do nothing.

        Args:
            local_world_size: ranks of this machine, which share its memory; the same on every machine.
            device: where the rows of this rank go; a GPU has not been tested yet.

        Raises:
            UserError: the rows do not fit the memory of all ranks.
        """
        if self._parallel is not None:
            return
        collection = empty_collection(self.num_rows, self.dim)
        from torchrec.distributed.model_parallel import DistributedModelParallel

        # It recommends a factory that does not support CPUs.
        logging.getLogger("torchrec").setLevel(logging.ERROR)
        sharder = self._sharder()
        plan = self._plan(collection, sharder, local_world_size, device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parallel = DistributedModelParallel(
                collection, device=device, plan=plan, sharders=[sharder], init_data_parallel=False
            )
        object.__setattr__(self, "_parallel", parallel)
        for shard in self.shards:
            fill_rows(shard.weight_SD, shard.first_row, self._std, self._seed)

    def _sharder(self) -> Any:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec.distributed.embedding import EmbeddingCollectionSharder

        return EmbeddingCollectionSharder(
            fused_params={
                "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
                "learning_rate": self._learning_rate,
                "eps": EPSILON,
            }
        )

    def _plan(self, collection: Any, sharder: Any, local_world_size: int, device: torch.device) -> Any:
        """Returns a row-wise sharding plan.

        Every rank computes the same one: if one planned for all, the others would not learn of its failure.
        """
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel
        from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
        from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
        from torchrec.distributed.planner.types import PlannerError
        from torchrec.distributed.types import ShardingType

        world_size = dist.get_world_size()
        by_row = ParameterConstraints(
            sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
        )
        gpu_memory = (
            {"hbm_cap": torch.cuda.get_device_properties(device).total_memory}
            if device.type == "cuda"
            else {}
        )
        topology = Topology(
            world_size=world_size,
            local_world_size=local_world_size,
            compute_device=device.type,
            ddr_cap=usable_memory_bytes() // local_world_size,
            **gpu_memory,
        )
        planner = EmbeddingShardingPlanner(
            topology=topology,
            constraints={TABLE: by_row},
            storage_reservation=FixedPercentageStorageReservation(percentage=RESERVED_SHARE),
        )
        try:
            return planner.plan(collection, [sharder])
        except PlannerError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"a table of {self.num_rows} rows x {self.dim} does not fit {world_size} workers: {reason}"
            ) from None

    def forward(self, rows_U: Tensor) -> Tensor:
        """Returns the vectors [U, D] of distinct int64 rows; a collective call."""
        found = self._parallel(jagged_rows(rows_U))
        vectors_UD: Tensor = (found.wait() if hasattr(found, "wait") else found)[TABLE].values()
        return vectors_UD

    def all_rows(self) -> Tensor:
        raise AssertionError("no rank holds all rows")

    @property
    def shards(self) -> list[Shard]:
        weight = self._parallel.state_dict()[f"embeddings.{TABLE}.weight"]
        (state,) = self._parallel.fused_optimizer.state_dict()["state"].values()
        pairs = zip(weight.local_shards(), state[f"{TABLE}.momentum1"].local_shards(), strict=True)
        return [
            Shard(rows.metadata.shard_offsets[0], rows.tensor.detach(), sums.tensor.detach())
            for rows, sums in pairs
        ]

    def set_learning_rate_scale(self, scale: float) -> None:
        optimizer = self._parallel.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate * scale
        # Hands the learning rate to the kernels; the steps themselves are taken in the backward pass.
        optimizer.step()
