"""Full softmax equals cross entropy, gBCE is its formula, and what holds for every loss.

Shape legend: M positions, D width, R item rows, I items, N negatives.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as given_values
from hypothesis import strategies as st
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.losses import (
    NUM_ITEMS,
    NUM_ROWS,
    Problem,
    assert_same,
    assignment_of,
    full,
    gradients,
    negatives_of,
    problem,
    sampled,
)
from training.data.draw_assignment import assign_draws
from training.losses.sampled import gbce, gbce_power
from training.losses.samplers import Negatives, UniformSampler

BEYOND_FLOAT32 = 2**24 + 1  # the first integer that float32 has not


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


# Full softmax


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


def test_full_softmax_of_one_item_is_nothing() -> None:
    given = problem(3, num_rows=FIRST_ITEM_ROW + 1)
    loss = full(given)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(float(gradient.abs().max()) < 1e-5 for gradient in gradients(loss, given))


def test_full_softmax_leaves_the_special_rows_alone() -> None:
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


def test_gradients_are_scaled_by_what_comes_after() -> None:
    """As when the sum is divided by the weights of all ranks."""
    given = problem(5)
    for ours, theirs in zip(
        gradients(full(given) / 7, given), gradients(naive(given) / 7, given), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_no_more_logits_are_held_than_allowed() -> None:
    """Peak memory grows with `max_logits`, not with positions x items: here 200 MB of logits in chunks of 4 MB."""
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
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
def step(positions, items):
    query_MD = torch.randn(positions, 64, generator=generator).requires_grad_()
    table_RD = torch.randn(items + 2, 64, generator=generator).requires_grad_()
    targets_M = torch.randint(2, items + 2, (positions,), generator=generator)
    before_kib = kib("VmRSS")
    full_softmax(query_MD, table_RD, targets_M, torch.ones(positions)).backward()
    return kib("VmHWM") - before_kib
step(128, 100)  # libraries allocate at their first use
print(step(2_048, 200_000))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_large_catalogue_is_bounded() -> None:
    """Beside table and queries: a chunk of 64 positions x 200,000 items and some copies of the table, each 51 MB; not 1.6 GB of logits.

    The largest resident size of a process of its own. (`ru_maxrss` would be that of the process it was forked from.)
    """
    result = subprocess.run([sys.executable, "-c", MEASURE_PEAK], check=True, capture_output=True, text=True)
    extra_bytes = int(result.stdout) * 1024
    assert 100e6 < extra_bytes < 450e6


# gBCE


def generalised(given: Problem, negatives: Negatives, calibration: float, temperature: float = 1.0) -> Tensor:
    options = {
        "num_items": len(given.table_RD) - FIRST_ITEM_ROW,
        "calibration": calibration,
        "temperature": temperature,
    }
    return gbce(*given.parts(), negatives, assignment_of(given, negatives), **options)


def naive_gbce(
    given: Problem, draws: list[list[int]], calibration: float, temperature: float = 1.0
) -> Tensor:
    """As in the paper: the sigmoid of the target to the power beta. Positions take the draws in turn."""
    num_negatives = len(draws[0])
    alpha = num_negatives / (len(given.table_RD) - FIRST_ITEM_ROW)
    beta = alpha * ((1 - 1 / alpha) * calibration + 1 / alpha)
    total = torch.zeros((), dtype=given.table_RD.dtype)
    for place, (query_D, target, weight) in enumerate(
        zip(given.query_MD, given.target_rows_M.tolist(), given.weights_M, strict=True)
    ):
        of_position = torch.log(torch.sigmoid(query_D @ given.table_RD[target] / temperature) ** beta)
        for row in draws[place % len(draws)]:
            if row != target:
                of_position = of_position + torch.log(
                    1 - torch.sigmoid(query_D @ given.table_RD[row] / temperature)
                )
        total = total - weight * of_position / (num_negatives + 1)
    return total


@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("num_negatives", [1, 2, 39, 100])
@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("calibration", [0.0, 0.3, 1.0])
def test_gbce_is_the_written_out_one(
    positions: int, num_negatives: int, num_draws: int, calibration: float
) -> None:
    """In float64 exactly, in float32 as far as that goes."""
    given = problem(positions)
    rows_SN = torch.randint(
        FIRST_ITEM_ROW, NUM_ROWS, (num_draws, num_negatives), generator=torch.Generator().manual_seed(0)
    )
    rows_SN[0, 0] = given.target_rows_M[0]  # an accidental hit
    for one in (given, given.double()):
        for temperature in (1.0, 0.7):
            theirs = naive_gbce(one, rows_SN.tolist(), calibration, temperature)
            assert_same(
                generalised(one, negatives_of(rows_SN, positions), calibration, temperature), theirs, one
            )


def test_gbce_without_calibration_is_binary_cross_entropy() -> None:
    """That of torch; no negative here is a target."""
    given = problem(4)
    rows_N = torch.tensor(
        [row for row in range(FIRST_ITEM_ROW, NUM_ROWS) if row not in given.target_rows_M.tolist()][:10]
    )
    logits = given.query_MD @ given.table_RD.T
    logits_ML = torch.cat([logits.gather(1, given.target_rows_M[:, None]), logits[:, rows_N]], dim=1)
    labels_ML = torch.zeros_like(logits_ML)
    labels_ML[:, 0] = 1.0
    theirs = (
        F.binary_cross_entropy_with_logits(logits_ML, labels_ML, reduction="none").mean(1) * given.weights_M
    ).sum()
    assert_same(generalised(given, negatives_of(rows_N, 4), 0.0), theirs, given)


@given_values(st.integers(1, 1000), st.integers(2, 10**9), st.floats(0, 1))
def test_the_power_is_that_of_the_paper(num_negatives: int, num_items: int, calibration: float) -> None:
    alpha = num_negatives / num_items  # the paper draws from all items but the target
    power = gbce_power(num_negatives, num_items, calibration)
    assert power == pytest.approx(alpha * ((1 - 1 / alpha) * calibration + 1 / alpha), rel=1e-6, abs=1e-12)
    assert gbce_power(num_negatives, num_items, 0.0) == 1.0
    assert gbce_power(num_negatives, num_items, 1.0) == pytest.approx(alpha, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("num_negatives", [1, 4])
def test_full_calibration_makes_probabilities_those_of_all_negatives(num_negatives: int) -> None:
    """What the calibration is for: the sigmoids that are the shares of the items among targets are where the loss is least.

    One query, five items of which one is the answer in three of five cases. The gradient of each item's logit is nothing there
    but the noise of 64,000 positions with t = 1, and far from it with t = 0.
    """
    share_I = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04], dtype=torch.float64)
    table_RD = torch.zeros(7, 5, dtype=torch.float64)
    table_RD[FIRST_ITEM_ROW:] = torch.eye(5)
    generator, positions = torch.Generator().manual_seed(3), 64_000
    targets_M = torch.multinomial(share_I, positions, replacement=True, generator=generator) + FIRST_ITEM_ROW
    negatives = UniformSampler(7).draw(positions, num_negatives, targets_M, generator)
    turns = assign_draws(np.arange(positions), positions)

    def t_statistics(calibration: float) -> Tensor:
        query_MD = torch.logit(share_I).repeat(positions, 1).requires_grad_()
        loss = gbce(
            query_MD,
            table_RD,
            targets_M,
            torch.ones(positions),
            negatives,
            turns,
            num_items=5,
            calibration=calibration,
        )
        (gradient_MI,) = torch.autograd.grad(loss, query_MD)
        return gradient_MI.mean(0).abs() / (gradient_MI.std(0) / positions**0.5)

    assert (t_statistics(1.0) < 4).all()
    assert (t_statistics(0.0) > 8).all()


@pytest.mark.parametrize("scale", [200.0, -200.0])
def test_gbce_is_stable(scale: float) -> None:
    """Sigmoids of +-200 round to 0 and 1 in float32, and their logarithms would be infinite or lost; the loss is as in float64."""
    table_RD = torch.tensor([[0.0], [0.0], [1.0], [-1.0], [0.5]])
    given = Problem(
        torch.tensor([[scale]], requires_grad=True),
        table_RD.requires_grad_(),
        torch.tensor([2]),
        torch.ones(1),
    )
    negatives = negatives_of(torch.tensor([3, 4, 4]), 1)
    loss = generalised(given, negatives, 0.75)
    torch.testing.assert_close(
        loss.double(), generalised(given.double(), negatives, 0.75), rtol=1e-6, atol=1e-6
    )
    assert float(loss.detach()) == pytest.approx(
        50.0 if scale > 0 else (200 * gbce_power(3, 3, 0.75) + 200) / 4
    )
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, given))


def test_gbce_of_one_item_asks_only_for_it() -> None:
    """Every negative is a hit."""
    given = problem(2, num_rows=FIRST_ITEM_ROW + 1)
    loss = generalised(given, negatives_of(torch.full((3,), FIRST_ITEM_ROW), 2), 0.0)
    logits_M = given.query_MD @ given.table_RD[FIRST_ITEM_ROW]
    torch.testing.assert_close(loss, (F.softplus(-logits_M) * given.weights_M).sum() / 4)


# All of them


def loss_of(kind: str, given: Problem, negatives: Negatives) -> Tensor:
    if kind == "full":
        return full(given, 2 * NUM_ITEMS)
    return sampled(given, negatives) if kind == "sampled" else generalised(given, negatives, 0.75)


@pytest.mark.parametrize("kind", ["full", "sampled", "gbce"])
def test_weights_weigh(kind: str) -> None:
    """A position of weight 2 counts as two of weight 1, one of weight 0 not at all."""
    given = problem(3)
    of_negatives, of_targets = (
        torch.tensor(values, dtype=torch.float64).log() for values in ([[0.1, 0.3, 0.02]], [0.2, 0.05, 0.4])
    )

    def loss(weights: list[float], places: list[int]) -> float:
        negatives = Negatives(torch.tensor([[5, 9, 30]]), of_negatives, of_targets[places])
        part = Problem(
            given.query_MD[places], given.table_RD, given.target_rows_M[places], torch.tensor(weights)
        )
        return float(loss_of(kind, part, negatives).detach())

    assert loss([2.0, 0.0, 1.0], [0, 1, 2]) == pytest.approx(loss([1.0, 1.0, 1.0], [0, 0, 2]), rel=1e-5)
    assert loss([4.0, 0.0, 1.0], [0, 1, 2]) != pytest.approx(loss([2.0, 0.0, 1.0], [0, 1, 2]), rel=1e-2)


@pytest.mark.parametrize("kind", ["full", "sampled", "gbce"])
def test_rows_beyond_float32_are_told_apart(kind: str) -> None:
    """Two neighbours that are one number in float32: the target and a negative, which is no hit."""
    first, second = BEYOND_FLOAT32 - 1, BEYOND_FLOAT32
    table_RD = torch.zeros(second + 2, 1)
    table_RD[first], table_RD[second] = 2.0, -1.0
    given = Problem(torch.ones(1, 1), table_RD, torch.tensor([first]), torch.ones(1))
    negatives = negatives_of(torch.tensor([second, first]), 1, 0.5)
    num_items = second + 2 - FIRST_ITEM_ROW
    expected = {
        "full": math.log(math.exp(2) + math.exp(-1) + num_items - 2) - 2,
        "sampled": math.log1p(math.exp(-3) / 2),  # the target twice: its own part, and 1 / (2 * 0.5)
        "gbce": (gbce_power(2, num_items, 0.75) * math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 3,
    }
    assert float(loss_of(kind, given, negatives)) == pytest.approx(expected[kind], rel=1e-5)


def test_the_loss_of_torch_agrees() -> None:
    """One more opinion on the naive oracle itself."""
    given = problem(6)
    losses_M = F.cross_entropy(
        given.query_MD @ given.table_RD[FIRST_ITEM_ROW:].T,
        given.target_rows_M - FIRST_ITEM_ROW,
        reduction="none",
    )
    torch.testing.assert_close(naive(given), (losses_M * given.weights_M).sum(), atol=1e-4, rtol=1e-5)
