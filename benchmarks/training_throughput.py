"""The speed of a training step, and the share of each operation.

Tokens/s, memory and FLOP/s by length, width and catalogue, on the GPU where there is one.
`--profile` adds the cost of each operation.

    .venv/bin/python -m benchmarks.training_throughput
    .venv/bin/python -m benchmarks.training_throughput --dims 64,256 --precisions fp32,bf16 --compiled no,yes
    .venv/bin/python -m benchmarks.training_throughput --profile --lengths 200

Every variant is a real run of the `sasrec` or `bert4rec` recipe, batches and optimizer included, on
synthetic histories, in a process of its own so that peak memory is its own.
Tokens are those of histories; padding is not counted, but its cost is.
`share_of_matmul_peak` compares FLOP/s with those of one large matrix product of the same type on the same
machine.
"""

import itertools
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.harness import apart, environment, peak_bytes, write_result
from benchmarks.synthetic import synthetic_dataset
from training.config import load_recipe
from training.data.batches import Batch
from training.runs.fit import fit
from training.runs.run import plan_run, start_run

COUNTED_STEPS = 3
PROFILED_STEPS = 3
PROFILE_ROWS = 15
MAX_LOGGED_STEPS = 40  # Lightning warns of epochs shorter than the interval of the loss curve
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    recipe: str
    loss: str
    length: int
    dim: int
    num_items: int
    precision: str
    compiled: bool
    token_budget: int

    def overrides(self) -> tuple[str, ...]:
        """The recipe's settings."""
        precision = {"fp32": "32-true", "bf16": "bf16-mixed"}[self.precision]
        return (
            f"model.max_history={self.length}",
            f"model.dim={self.dim}",
            f"loss.kind={self.loss}",
            f"training.precision={precision}",
            f"batches.token_budget={self.token_budget}",
            "training.max_epochs=1",
            "training.include_validation=true",
        )


class Stopwatch(pl.Callback):
    """Times steps after the first ones, then profiles some, then counts the operations of some, then ends the
    run.

    Counting comes last: after it PyTorch runs what was compiled as though it were not.
    """

    def __init__(self, *, warmup: int, steps: int, profiled: bool, compiled: bool) -> None:
        self._first, self._last = warmup, warmup + steps
        self._counted = self._last + (PROFILED_STEPS if profiled else 0)
        self._end = self._counted + COUNTED_STEPS
        self._compiled = compiled
        self._counter: FlopCounterMode | None = None
        self._profile: Any = None
        self._begun_s = 0.0
        self.tokens = self.padded = self.windows = self.targets = self.flops = self.counted_tokens = 0
        self.seconds = 0.0
        self.operations: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._compiled:
            encoder = pl_module.encoder
            assert isinstance(encoder, torch.nn.Module)
            encoder.compile(dynamic=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == self._first:
            self._begun_s = _now_s()
        if self._counted <= batch_idx < self._end:
            self._counter = flop_counter()
            self._counter.__enter__()
        if batch_idx == self._last < self._counted:
            activities = [
                ProfilerActivity.CPU,
                *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
            ]
            self._profile = profile(activities=activities)
            self._profile.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._first <= batch_idx < self._last:
            lengths_B = batch.offsets_B1.diff()
            self.tokens += len(batch.items_T)
            self.padded += int(lengths_B.max()) * len(lengths_B)
            self.windows += len(lengths_B)
            self.targets += len(batch.target_positions_M)
        if batch_idx == self._last - 1:
            self.seconds = _now_s() - self._begun_s
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops += self._counter.get_total_flops()
            self.counted_tokens += len(batch.items_T)
            self._counter = None
        if self._profile is not None and batch_idx == self._counted - 1:
            self._profile.__exit__(None, None, None)
            self.operations = _costliest(self._profile)
        if batch_idx == self._end - 1:
            trainer.should_stop = True


def flop_counter() -> FlopCounterMode:
    """Counts floating-point operations of matrix products and attention.

    PyTorch's own counter does not know fused attention on a CPU.
    """

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={fused: forward, fused_backward: backward})


def _now_s() -> float:
    """The time when all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _costliest(profiled: Any) -> list[dict[str, Any]]:
    """Returns the operations that took longest, each without those it called."""
    cuda = torch.cuda.is_available()
    rows = [
        (row.key, row.self_device_time_total if cuda else row.self_cpu_time_total, row.count)
        for row in profiled.key_averages()
    ]
    total_us = sum(us for _, us, _ in rows)
    rows.sort(key=lambda row: -row[1])
    return [
        {"operation": key, "share": us / total_us, "calls_per_step": count / PROFILED_STEPS}
        for key, us, count in rows[:PROFILE_ROWS]
    ]


def matmul_flops_per_s(device: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of one large matrix product, the best of a second of them."""
    size = PEAK_SIZE[device]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, begun_s = float("inf"), _now_s()
    while _now_s() - begun_s < seconds:
        product_s = _now_s()
        torch.mm(left, right)
        best = min(best, _now_s() - product_s)
    return 2 * size**3 / best


def measure(variant: Variant, warmup: int, steps: int, profiled: bool) -> dict[str, Any]:
    """The figures of one variant, in this process."""
    cuda = torch.cuda.is_available()
    config = load_recipe(variant.recipe, variant.overrides())
    watch = Stopwatch(warmup=warmup, steps=steps, profiled=profiled, compiled=variant.compiled)
    all_steps = warmup + steps + COUNTED_STEPS + PROFILED_STEPS + 2
    with tempfile.TemporaryDirectory() as folder:
        dataset = synthetic_dataset(
            Path(folder) / "data",
            num_events=max(2 * all_steps, MAX_LOGGED_STEPS) * variant.token_budget,
            length=variant.length,
            num_items=variant.num_items,
        )
        before_bytes = peak_bytes()
        run = Path(folder) / "run"
        start_run(run, plan_run(run, variant.recipe, dataset, config, resume=False))
        fit(dataset, config, run, callbacks=[watch])
    used_bytes = torch.cuda.max_memory_allocated() if cuda else peak_bytes() - before_bytes
    flops_per_s = watch.flops / watch.counted_tokens * watch.tokens / watch.seconds
    dtype = torch.bfloat16 if variant.precision == "bf16" else torch.float32
    peak = matmul_flops_per_s("cuda" if cuda else "cpu", dtype)
    return {
        "tokens_per_s": watch.tokens / watch.seconds,
        "samples_per_s": watch.windows / watch.seconds,
        "targets_per_s": watch.targets / watch.seconds,
        "step_ms": 1000 * watch.seconds / steps,
        "padding_share": 1 - watch.tokens / watch.padded,
        "peak_memory_mib": used_bytes / 2**20,
        "flops_per_token": watch.flops / watch.counted_tokens,
        "gflops_per_s": flops_per_s / 1e9,
        "matmul_gflops_per_s": peak / 1e9,
        "share_of_matmul_peak": flops_per_s / peak,
        **({"operations": watch.operations} if profiled else {}),
    }


def _several(_context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    return text.split(",")


@click.command()
@click.option("--recipes", default="sasrec,bert4rec", show_default=True, callback=_several)
@click.option("--losses", default="full,sampled", show_default=True, callback=_several)
@click.option("--lengths", default="50,200", show_default=True, callback=_several)
@click.option("--dims", default="64", show_default=True, callback=_several)
@click.option("--catalogues", default="10000", show_default=True, callback=_several, help="Numbers of items.")
@click.option("--precisions", default="fp32", show_default=True, callback=_several, help="fp32, bf16.")
@click.option(
    "--compiled",
    default="no",
    show_default=True,
    callback=_several,
    help="no, yes: torch.compile of the encoder.",
)
@click.option("--token-budget", default=12_800, show_default=True)
@click.option("--warmup", default=5, show_default=True, help="Steps before the clock starts.")
@click.option("--steps", default=20, show_default=True, help="Timed steps.")
@click.option("--profile", "profiled", is_flag=True, help="Say what each operation costs.")
def main(
    recipes: list[str],
    losses: list[str],
    lengths: list[str],
    dims: list[str],
    catalogues: list[str],
    precisions: list[str],
    compiled: list[str],
    token_budget: int,
    warmup: int,
    steps: int,
    profiled: bool,
) -> None:
    """Measure every combination, each in a process of its own, and store one result file."""
    started = environment()
    grid = itertools.product(
        recipes, losses, map(int, lengths), map(int, dims), map(int, catalogues), precisions, compiled
    )
    variants = [
        Variant(*values[:6], compiled=values[6] == "yes", token_budget=token_budget) for values in grid
    ]
    rows = []
    for number, variant in enumerate(variants, start=1):
        rows.append({**asdict(variant), **apart(measure, variant, warmup, steps, profiled)})
        click.echo(f"{number}/{len(variants)} {rows[-1]}", err=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    write_result(
        "training_throughput",
        started,
        {
            "device": device,
            "threads": torch.get_num_threads(),
            "warmup": warmup,
            "steps": steps,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
