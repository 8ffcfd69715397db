"""The full softmax equals cross entropy, in bounded memory.

Shape legend: M positions, D width, R item rows, I items.
"""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.losses import NUM_ITEMS, Problem, assert_same, full, gradients, problem


def naive(given: Problem, temperature: float = 1.0) -> Tensor:
    """Weighted sum of -log softmax, one position and one item at a time."""
    total = torch.zeros((), dtype=given.table_RD.dtype)
    for query_D, target, weight in zip(given.query_MD, given.target_rows_M, given.weights_M, strict=True):
        logits = torch.stack(
            [
                query_D @ given.table_RD[row] / temperature
                for row in range(FIRST_ITEM_ROW, len(given.table_RD))
            ]
        )
        total = total - weight * torch.log(
            torch.exp(query_D @ given.table_RD[target] / temperature) / torch.exp(logits).sum()
        )
    return total


@pytest.mark.parametrize("positions", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("max_logits", [1, 64 * NUM_ITEMS, 2**24])
def test_full_softmax_is_cross_entropy(positions: int, max_logits: int) -> None:
    given = problem(positions)
    assert_same(full(given, max_logits), naive(given), given)


@pytest.mark.parametrize("positions", [63, 64, 65, 130])
@pytest.mark.parametrize("max_logits", [1, 65 * NUM_ITEMS, 2**24])
def test_full_softmax_is_cross_entropy_in_chunks(positions: int, max_logits: int) -> None:
    """In chunks of 64 and 65 positions, and all at once; in float64."""
    given = problem(positions).double()
    assert_same(full(given, max_logits), naive(given), given)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_full_softmax_has_a_temperature(temperature: float) -> None:
    given = problem(5).double()
    assert_same(full(given, temperature=temperature), naive(given, temperature), given)


def test_full_softmax_of_one_item_is_zero() -> None:
    given = problem(3, num_rows=FIRST_ITEM_ROW + 1)
    loss = full(given)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(float(gradient.abs().max()) < 1e-5 for gradient in gradients(loss, given))


def test_special_rows_have_no_gradient() -> None:
    given = problem(5)
    loss = full(given)
    assert not gradients(loss, given)[1][:FIRST_ITEM_ROW].any()
    with torch.no_grad():
        given.table_RD[:FIRST_ITEM_ROW] = 100.0
    torch.testing.assert_close(full(given), loss)


def test_full_softmax_of_large_logits_is_finite() -> None:
    given = problem(3)
    with torch.no_grad():
        given.query_MD *= 1000
    loss = full(given)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, given))


def test_gradients_are_scaled_by_the_incoming_gradient() -> None:
    """As when the sum is divided by the weights of all ranks."""
    given = problem(5)
    for ours, theirs in zip(
        gradients(full(given) / 7, given), gradients(naive(given) / 7, given), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_memory_is_bounded_by_max_logits() -> None:
    """Peak memory grows with `max_logits`, not with positions x items.

    Here, 200 MB of logits in chunks of 4 MB.
    """
    given = problem(5_000, num_rows=10_002)
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        full(given, max_logits=2**20).backward()
    largest_bytes = max(event.cpu_memory_usage for event in profile.events())
    assert largest_bytes < 50 * 2**20


MEASURE_PEAK = """
import re
from pathlib import Path
import torch
from training.losses.full_softmax import full_softmax
from training.losses.inputs import LossInputs
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
def step(positions, items):
    query_MD = torch.randn(positions, 64, generator=generator).requires_grad_()
    table_RD = torch.randn(items + 2, 64, generator=generator).requires_grad_()
    targets_M = torch.randint(2, items + 2, (positions,), generator=generator)
    before_kib = kib("VmRSS")
    full_softmax(LossInputs(query_MD, table_RD, targets_M, torch.ones(positions))).backward()
    return kib("VmHWM") - before_kib
step(128, 100)  # libraries allocate at their first use
print(step(2_048, 200_000))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_large_catalogue_is_bounded() -> None:
    """Above table and queries: a chunk of 64 positions x 200,000 items and some copies of the table.

    Each of these is 51 MB; all logits would be 1.6 GB.
    It is the largest resident size of a process of its own.
    (`ru_maxrss` would be that of the process it was forked from.)
    """
    result = subprocess.run([sys.executable, "-c", MEASURE_PEAK], check=True, capture_output=True, text=True)
    extra_bytes = int(result.stdout) * 1024
    assert 100e6 < extra_bytes < 450e6


def test_the_naive_softmax_agrees_with_torch() -> None:
    """Verifies the oracle itself."""
    given = problem(6)
    losses_M = F.cross_entropy(
        given.query_MD @ given.table_RD[FIRST_ITEM_ROW:].T,
        given.target_rows_M - FIRST_ITEM_ROW,
        reduction="none",
    )
    torch.testing.assert_close(naive(given), (losses_M * given.weights_M).sum(), atol=1e-4, rtol=1e-5)
