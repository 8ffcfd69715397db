"""The files of a self-managed table, beside the checkpoints that name it.

Each rank writes the rows that it holds, and a reader takes the rows that it needs.
No rank ever holds all rows of a sharded table; ranks of other machines need to see the directory.

checkpoints/
  last.ckpt, best.ckpt       everything else, and the name of their table
  tables/<name>/weight.npy   float32 [R, D]
  tables/<name>/momentum.npy float32 [R], the state of row-wise Adagrad

Shape legend: R rows, D width, S rows of a shard.
"""

import os
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from passerelle.arrays import Float32Array
from passerelle.errors import UserError
from passerelle.files import flush

TABLES = "tables"
TABLE_KEY = "table"
"""The key of a checkpoint that holds the name of its table."""
WEIGHT, MOMENTUM = "weight.npy", "momentum.npy"


class Shard(NamedTuple):
    """Consecutive rows that a rank holds."""

    first_row: int
    weight_SD: Tensor
    momentum_S: Tensor | None = None
    """The optimizer state of a self-managed table."""


class SavedTable(NamedTuple):
    """All rows, mapped read-only."""

    weight_RD: Tensor
    momentum_R: Tensor

    def read_into(self, shards: Sequence[Shard]) -> None:
        """Overwrites shards with the saved rows."""
        for first_row, *values in shards:
            for own, saved in zip(values, self, strict=True):
                assert own is not None
                own.copy_(saved[first_row : first_row + len(own)])


def write_table(checkpoints: Path, num_rows: int, dim: int, shards: Sequence[Shard]) -> str:
    """Writes a table that the ranks hold together and returns its name; a collective call."""
    name = _broadcast(uuid.uuid4().hex[:12])
    unfinished = checkpoints / TABLES / f".{name}"
    shapes = {WEIGHT: (num_rows, dim), MOMENTUM: (num_rows,)}
    if _rank() == 0:
        unfinished.mkdir(parents=True)
        for file, shape in shapes.items():
            np.lib.format.open_memmap(unfinished / file, "w+", np.float32, shape)
    _barrier()
    for first_row, *values in shards:
        for (file, shape), own in zip(shapes.items(), values, strict=True):
            assert own is not None
            _write_rows(unfinished / file, first_row, shape, own.detach().cpu().numpy())
    _barrier()
    if _rank() == 0:
        flush(unfinished)
        unfinished.rename(checkpoints / TABLES / name)
        flush(checkpoints / TABLES)
    _barrier()
    return name


def _write_rows(path: Path, first_row: int, shape: tuple[int, ...], rows: Float32Array) -> None:
    """Writes rows at their offset, as plain bytes.

    Two machines that map one page of a shared file may lose what the other wrote.
    """
    header_bytes = path.stat().st_size - 4 * int(np.prod(shape))
    with path.open("r+b") as stream:
        stream.seek(header_bytes + first_row * 4 * int(np.prod(shape[1:])))
        stream.write(np.ascontiguousarray(rows).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def open_table(checkpoints: Path, name: str) -> SavedTable:
    """Opens a table by its name.

    Raises:
        UserError: its files are missing or damaged.
    """
    folder = checkpoints / TABLES / name
    try:
        with warnings.catch_warnings():
            # Of a read-only mapping: a private, writable one would count as memory.
            warnings.simplefilter("ignore")
            return SavedTable(
                *(
                    torch.from_numpy(np.load(folder / file, mmap_mode="r", allow_pickle=False))
                    for file in (WEIGHT, MOMENTUM)
                )
            )
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{folder}: the table of a checkpoint is missing or damaged ({error})") from None


def table_name(checkpoint: Mapping[str, Any], where: str) -> str:
    """Returns the name of the table of a checkpoint.

    Args:
        where: the checkpoint, as the error message calls it.

    Raises:
        UserError: the checkpoint names none.
    """
    if TABLE_KEY not in checkpoint:
        raise UserError(
            f"{where}: the checkpoint of a sparse table was made by an older version of the code: "
            "train it again"
        )
    return str(checkpoint[TABLE_KEY])


def table_files(checkpoints: Path, name: str | None) -> list[Path]:
    """Returns the files of a table; none without a name."""
    return [] if name is None else [checkpoints / TABLES / name / file for file in (WEIGHT, MOMENTUM)]


def remove_other_tables(checkpoints: Path, kept: set[str]) -> None:
    """Removes tables that no checkpoint names, and those left half-written by a killed process."""
    for folder in (checkpoints / TABLES).glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _broadcast(name: str) -> str:
    """Returns the name that rank zero has chosen."""
    names = [name]
    if dist.is_initialized():
        dist.broadcast_object_list(names)
    return names[0]
