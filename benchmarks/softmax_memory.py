"""The memory that a softmax over the whole catalogue takes.

Loss and gradients, chunked as we do and whole as libraries do.

    .venv/bin/python -m benchmarks.softmax_memory       (about three minutes on 2 quiet cores)

Each figure is the peak of a process of its own, above what it held with the table and the queries in place.
What the whole one would need is computed where it does not fit: logits and their gradient, 8 bytes each
position and item.
"""

import time
from typing import Any

import click
import torch
import torch.nn.functional as F

from benchmarks.harness import apart, environment, peak_bytes, write_result
from passerelle.ids import FIRST_ITEM_ROW
from training.losses.full_softmax import full_softmax
from training.losses.inputs import LossInputs

DIM = 64
WHOLE_BYTES = 8
CASES = ((10_000, 8_192), (100_000, 8_192), (1_000_000, 8_192), (1_000_000, 1_024))
"""Items and positions."""


def measure(kind: str, num_items: int, num_positions: int) -> dict[str, Any]:
    """Peak memory above table and queries, and seconds, of one loss with its gradients, in this process."""
    generator = torch.Generator().manual_seed(0)
    table_RD = (torch.randn(num_items + FIRST_ITEM_ROW, DIM, generator=generator) / 8).requires_grad_()
    query_MD = torch.randn(num_positions, DIM, generator=generator, requires_grad=True)
    target_rows_M = torch.randint(FIRST_ITEM_ROW, len(table_RD), (num_positions,), generator=generator)
    before_bytes, begun_s = peak_bytes(), time.perf_counter()
    if kind == "chunked":
        loss = full_softmax(LossInputs(query_MD, table_RD, target_rows_M, torch.ones(num_positions)))
    else:
        loss = F.cross_entropy(
            query_MD @ table_RD[FIRST_ITEM_ROW:].T, target_rows_M - FIRST_ITEM_ROW, reduction="sum"
        )
    loss.backward()
    return {
        "peak_mib_above_table": (peak_bytes() - before_bytes) / 2**20,
        "seconds": time.perf_counter() - begun_s,
        "loss_per_position": float(loss.detach()) / num_positions,
    }


@click.command()
@click.option(
    "--limit-gib",
    default=8.0,
    show_default=True,
    help="The whole softmax is run where it needs less than this.",
)
def main(limit_gib: float) -> None:
    """Measure every case and store one result file."""
    started = environment()
    rows = []
    for num_items, num_positions in CASES:
        whole_gib = num_items * num_positions * WHOLE_BYTES / 2**30
        row: dict[str, Any] = {
            "num_items": num_items,
            "num_positions": num_positions,
            "dim": DIM,
            "whole_needs_gib": whole_gib,
        }
        for kind in ("chunked", "whole") if whole_gib < limit_gib else ("chunked",):
            row[kind] = apart(measure, kind, num_items, num_positions)
        rows.append(row)
        click.echo(str(row), err=True)
    write_result("softmax_memory", started, {"threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
