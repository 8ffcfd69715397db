"""A sparse table on disk, beside the checkpoints that name it: each rank writes the rows it holds, whoever reads takes those it wants.

checkpoints/
  last.ckpt, best.ckpt       everything else, and the name of their table
  tables/<name>/weight.npy   float32 [R, D]
  tables/<name>/momentum.npy float32 [R], the state of row-wise Adagrad

Nobody ever holds all rows but on one rank. Ranks of other machines have to see the folder.

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
"""What a checkpoint calls the name of its table."""
WEIGHT, MOMENTUM = "weight.npy", "momentum.npy"


class Shard(NamedTuple):
    """Rows that a rank holds, one after the other."""

    first_row: int
    weight_SD: Tensor
    momentum_S: Tensor


class SavedTable(NamedTuple):
    """All rows, mapped: to be read, not to be written into."""

    weight_RD: Tensor
    momentum_R: Tensor

    def read_into(self, shards: Sequence[Shard]) -> None:
        """Overwrite some shards with what was saved."""
        for first_row, *values in shards:
            for own, saved in zip(values, self, strict=True):
                own.copy_(saved[first_row : first_row + len(own)])


def write_table(checkpoints: Path, num_rows: int, dim: int, shards: Sequence[Shard]) -> str:
    """Write a table that ranks hold together, and give its name; every rank must ask."""
    name = _agreed(uuid.uuid4().hex[:12])
    unfinished = checkpoints / TABLES / f".{name}"
    shapes = {WEIGHT: (num_rows, dim), MOMENTUM: (num_rows,)}
    if _rank() == 0:
        unfinished.mkdir(parents=True)
        for file, shape in shapes.items():
            np.lib.format.open_memmap(unfinished / file, "w+", np.float32, shape)
    _wait()
    for first_row, *values in shards:
        for (file, shape), own in zip(shapes.items(), values, strict=True):
            _write_rows(unfinished / file, first_row, shape, own.detach().cpu().numpy())
    _wait()
    if _rank() == 0:
        flush(unfinished)
        unfinished.rename(checkpoints / TABLES / name)
        flush(checkpoints / TABLES)
    _wait()
    return name


def _write_rows(path: Path, first_row: int, shape: tuple[int, ...], rows: Float32Array) -> None:
    """In their place, as bytes: two machines that map one page of a shared file may lose what the other wrote."""
    header_bytes = path.stat().st_size - 4 * int(np.prod(shape))
    with path.open("r+b") as stream:
        stream.seek(header_bytes + first_row * 4 * int(np.prod(shape[1:])))
        stream.write(np.ascontiguousarray(rows).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def open_table(checkpoints: Path, name: str) -> SavedTable:
    """The table that a checkpoint names.

    Raises:
        UserError: it is not there.
    """
    folder = checkpoints / TABLES / name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # that they are read-only; a private, writable mapping would count as memory
            return SavedTable(
                *(
                    torch.from_numpy(np.load(folder / file, mmap_mode="r", allow_pickle=False))
                    for file in (WEIGHT, MOMENTUM)
                )
            )
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{folder}: the table of a checkpoint is missing or damaged ({error})") from None


def table_of(checkpoint: Mapping[str, Any], where: str) -> str:
    """The name of its table.

    Raises:
        UserError: it has none.
    """
    if TABLE_KEY not in checkpoint:
        raise UserError(
            f"{where}: the checkpoint of a sparse table was made by an older version of the code: train it again"
        )
    return str(checkpoint[TABLE_KEY])


def table_files(checkpoints: Path, name: str | None) -> list[Path]:
    """Where the table of a checkpoint is; nowhere, if the checkpoint has none."""
    return [] if name is None else [checkpoints / TABLES / name / file for file in (WEIGHT, MOMENTUM)]


def remove_other_tables(checkpoints: Path, kept: set[str]) -> None:
    """Remove tables that no checkpoint names any more, those half-written by a process that was killed among them."""
    for folder in (checkpoints / TABLES).glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _agreed(name: str) -> str:
    """Rank zero's."""
    names = [name]
    if dist.is_initialized():
        dist.broadcast_object_list(names)
    return names[0]
