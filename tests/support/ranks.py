"""Several ranks of a process group, on this machine."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

# Imported once, and then forked for each rank: importing torch takes a rank five seconds of CPU time.
PRELOADED = ["pytest", "training.model.factory", "training.runs.run"]


def run_on_ranks(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Calls `function(rank, *arguments)` in `world_size` processes, and raises what one of them raised."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(function, arguments, nprocs=world_size, start_method="forkserver")
