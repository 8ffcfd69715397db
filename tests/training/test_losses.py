"""Full softmax equals cross entropy; sampled softmax estimates it, which it would not without its correction; gBCE is its formula.

Shape legend: M positions, D width, R item rows, I items, N negatives, S draws of the negatives.
"""

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as given_values
from hypothesis import strategies as st
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.config import LossConfig
from training.full_softmax import full_softmax
from training.losses import gbce, gbce_power, sampled_softmax
from training.samplers import Negatives, Sampler, make_sampler

NUM_ROWS, DIM = 42, 6
NUM_ITEMS = NUM_ROWS - FIRST_ITEM_ROW
BEYOND_FLOAT32 = 2**24 + 1  # the first integer that float32 has not


@dataclass
class Problem:
    """Some positions with their targets, over a small catalogue."""

    query_MD: Tensor
    table_RD: Tensor
    target_rows_M: Tensor
    weights_M: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.query_MD, self.table_RD, self.target_rows_M, self.weights_M

    def double(self) -> "Problem":
        query_MD, table_RD = (tensor.detach().double().requires_grad_() for tensor in (self.query_MD, self.table_RD))
        return Problem(query_MD, table_RD, self.target_rows_M, self.weights_M.double())


def problem(positions: int, seed: int = 0, num_rows: int = NUM_ROWS, scale: float = 1.0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    return Problem(
        (scale * torch.randn(positions, DIM, generator=generator)).requires_grad_(),
        torch.randn(num_rows, DIM, generator=generator, requires_grad=True),
        torch.randint(FIRST_ITEM_ROW, num_rows, (positions,), generator=generator),
        torch.rand(positions, generator=generator) + 0.5,
    )


def naive(given: Problem, temperature: float = 1.0) -> Tensor:
    """Weighted sum of -log softmax, one position and one item at a time."""
    total = torch.zeros((), dtype=given.table_RD.dtype)
    for query_D, target, weight in zip(given.query_MD, given.target_rows_M, given.weights_M, strict=True):
        logits = torch.stack([query_D @ given.table_RD[row] / temperature for row in range(FIRST_ITEM_ROW, len(given.table_RD))])
        total = total - weight * torch.log(torch.exp(query_D @ given.table_RD[target] / temperature) / torch.exp(logits).sum())
    return total


def full(given: Problem, max_logits: int = 3 * NUM_ITEMS, temperature: float = 1.0) -> Tensor:
    return full_softmax(*given.parts(), temperature=temperature, max_logits=max_logits)


def gradients(loss: Tensor, given: Problem) -> tuple[Tensor, Tensor]:
    query_MD, table_RD = torch.autograd.grad(loss, (given.query_MD, given.table_RD))
    return query_MD, table_RD


def assert_same(ours: Tensor, theirs: Tensor, given: Problem) -> None:
    """Losses and gradients."""
    tight = ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, atol=1e-12 if tight else 1e-4, rtol=1e-12 if tight else 1e-5)
    for one, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12 if tight else 1e-5, rtol=1e-10 if tight else 1e-5)


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
    for ours, theirs in zip(gradients(full(given) / 7, given), gradients(naive(given) / 7, given), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_no_more_logits_are_held_than_allowed() -> None:
    """Peak memory grows with `max_logits`, not with positions x items: here 200 MB of logits in chunks of 4 MB."""
    given = problem(5_000, num_rows=10_002)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        full(given, max_logits=2**20).backward()
    largest_bytes = max(event.cpu_memory_usage for event in profile.events())
    assert largest_bytes < 50 * 2**20


MEASURE_PEAK = """
import re
from pathlib import Path
import torch
from training.full_softmax import full_softmax
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


# Sampled softmax


def negatives_of(rows: Tensor, probability: float = 1 / NUM_ITEMS) -> Negatives:
    return Negatives(rows, torch.full(rows.shape, math.log(probability), dtype=torch.float64))


def sampled(given: Problem, negatives: Negatives, temperature: float = 1.0, correction: bool = True) -> Tensor:
    return sampled_softmax(*given.parts(), negatives, temperature=temperature, correction=correction)


def naive_sampled(given: Problem, negatives: Negatives, temperature: float = 1.0, correction: bool = True) -> Tensor:
    """The estimate of the denominator written out: the target once, and exp(logit) / (N q) for each other negative."""
    total = torch.zeros((), dtype=given.table_RD.dtype)
    for query_D, target, weight in zip(given.query_MD, given.target_rows_M.tolist(), given.weights_M, strict=True):
        denominator = torch.exp(query_D @ given.table_RD[target] / temperature)
        for row, log_probability in zip(negatives.rows_N.tolist(), negatives.log_probability_N.tolist(), strict=True):
            expected_times = len(negatives) * math.exp(log_probability) if correction else 1.0
            if row != target:
                denominator = denominator + torch.exp(query_D @ given.table_RD[row] / temperature) / expected_times
        total = total + weight * (torch.log(denominator) - query_D @ given.table_RD[target] / temperature)
    return total


SAMPLERS: dict[str, dict[str, object]] = {
    "uniform": {},
    "log_uniform": {"sampler": "log_uniform"},
    "popularity": {"sampler": "popularity"},
    "flattened popularity": {"sampler": "popularity", "popularity_exponent": 0.5},
    "streaming": {"sampler": "streaming"},
    "in batch": {"sampler": "in_batch"},
    "mixed": {"sampler": "mixed"},
}
COUNTS_R = torch.cat(
    [torch.zeros(2), torch.floor(40 * torch.rand(NUM_ITEMS, generator=torch.Generator().manual_seed(1)) ** 2) + 3]
).double()
POOL = 8


def sampler_of(name: str) -> Sampler:
    return make_sampler(LossConfig.model_validate({"kind": "sampled", **SAMPLERS[name]}), COUNTS_R)


def pool(target_rows_M: Tensor, generator: torch.Generator) -> Tensor:
    """The targets of a whole step: those given, and others as events have them, 8 in all."""
    others = torch.multinomial(COUNTS_R, POOL - len(target_rows_M), replacement=True, generator=generator)
    return torch.cat([target_rows_M, others])


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("num_negatives", [1, 2, 30])
def test_sampled_softmax_is_the_written_out_one(name: str, positions: int, num_negatives: int) -> None:
    """Float32 and float64, corrected or not, at two temperatures."""
    given = problem(positions)
    generator = torch.Generator().manual_seed(0)
    negatives = sampler_of(name).draw(num_negatives, pool(given.target_rows_M, generator), generator)
    negatives.rows_N[0] = given.target_rows_M[0]  # an accidental hit
    for one in (given, given.double()):
        for temperature in (1.0, 0.4):
            for correction in (True, False):
                ours, theirs = (loss(one, negatives, temperature, correction) for loss in (sampled, naive_sampled))
                assert_same(ours, theirs, one)


def test_accidental_hits_are_left_out() -> None:
    """With nothing but the target among the negatives there is nothing to tell it from: no loss, no gradient."""
    given = problem(1)
    loss = sampled(given, negatives_of(given.target_rows_M.repeat(4)))
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(not gradient.any() for gradient in gradients(loss, given))
    assert float(sampled(given, negatives_of(given.target_rows_M - 1)).detach()) > 0, "the neighbour is no hit"


def test_a_step_without_negatives_has_no_loss() -> None:
    """As that of a rank without targets, or of a single target in its own batch."""
    nobody = torch.empty(0, dtype=torch.int64)
    given = problem(2)
    assert float(sampled(given, negatives_of(nobody)).detach()) == 0.0
    empty = Problem(given.query_MD[:0], given.table_RD, nobody, given.weights_M[:0])
    for loss in (sampled(empty, negatives_of(nobody)), sampled(empty, negatives_of(torch.tensor([3]))), full(empty)):
        assert float(loss.detach()) == 0.0
        assert not gradients(loss, Problem(given.query_MD, given.table_RD, nobody, nobody))[1].any()


def test_a_negative_is_a_hit_for_its_own_position_only() -> None:
    given = problem(2)
    negatives = negatives_of(given.target_rows_M[:1])
    alone = [Problem(given.query_MD[[place]], given.table_RD, given.target_rows_M[[place]], given.weights_M[[place]]) for place in (0, 1)]
    assert float(sampled(alone[0], negatives).detach()) == pytest.approx(0.0, abs=1e-6)
    expected = sampled(alone[1], negatives)
    torch.testing.assert_close(sampled(given, negatives), expected)
    assert float(expected.detach()) > 0


def estimates(name: str, num_negatives: int, draws: int, correction: bool = True) -> tuple[Tensor, Tensor]:
    """Errors of the estimated denominator of one position: [S], and of its gradient with respect to the table, [S, R, D].

    loss = log(denominator) - logit of the target. The loss itself is unbiased in the limit only, as the logarithm of an estimate;
    the denominator and its gradient are for any number of negatives.
    """
    given = problem(1, scale=0.3).double()
    given.weights_M = torch.ones(1, dtype=torch.float64)
    sampler, generator = sampler_of(name), torch.Generator().manual_seed(7)
    exact = torch.exp(given.query_MD[0] @ given.table_RD[FIRST_ITEM_ROW:].T).sum()
    exact_RD = gradients(exact, given)[1]
    values, gradients_RD = [], []
    for _ in range(draws):
        negatives = sampler.draw(num_negatives, pool(given.target_rows_M, generator), generator)
        target_logit = given.query_MD[0] @ given.table_RD[given.target_rows_M[0]]
        estimate = torch.exp(sampled(given, negatives, correction=correction) + target_logit)
        values.append((estimate - exact).detach())
        gradients_RD.append(gradients(estimate, given)[1] - exact_RD)
    return torch.stack(values), torch.stack(gradients_RD)


def deviations(errors_S: Tensor) -> Tensor:
    """Mean errors in standard errors of the mean; 0 where nothing varies and nothing is wrong."""
    mean, standard_error = errors_S.mean(0), errors_S.std(0) / len(errors_S) ** 0.5
    return torch.where(mean.abs() < 1e-9, 0.0, mean / standard_error)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize(("num_negatives", "draws"), [(3, 900), (20, 400)])
def test_the_denominator_and_its_gradient_are_unbiased(name: str, num_negatives: int, draws: int) -> None:
    """5 standard errors for the largest of 252 gradients; the rarest item is expected among the draws 10 times at least."""
    values_S, gradients_SRD = estimates(name, num_negatives, draws)
    assert float(deviations(values_S).abs()) < 4
    assert float(deviations(gradients_SRD).abs().max()) < 5


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_without_the_correction_they_are_biased(name: str) -> None:
    values_S, gradients_SRD = estimates(name, 20, 400, correction=False)
    assert float(deviations(values_S).abs()) > 10
    assert float(deviations(gradients_SRD).abs().max()) > 10


def test_a_streaming_frequency_corrects_in_batch_negatives() -> None:
    """After 400 steps of 8 targets, the denominator to a few percent.

    The position is none of the batch here, so that all 8 targets are draws.
    """
    given = problem(1, scale=0.3)
    given.weights_M = torch.ones(1)
    options = {"sampler": "in_batch", "in_batch_frequency": "streaming", "streaming_rate": 0.005}
    config = LossConfig.model_validate({"kind": "sampled", **options})
    sampler, generator = make_sampler(config, torch.zeros(NUM_ROWS, dtype=torch.float64)), torch.Generator().manual_seed(4)
    ratios = []
    with torch.no_grad():
        exact = torch.exp(given.query_MD[0] @ given.table_RD[FIRST_ITEM_ROW:].T).sum()
        of_target = torch.exp(given.query_MD[0] @ given.table_RD[given.target_rows_M[0]])
        for step in range(1200):
            negatives = sampler.draw(POOL, torch.multinomial(COUNTS_R, POOL, replacement=True, generator=generator), generator)
            if step >= 400:
                negatives = Negatives(negatives.rows_N, negatives.log_probability_N - math.log(1 - 1 / POOL))
                ratios.append(torch.exp(sampled(given, negatives)) * of_target / exact)
    assert float(torch.stack(ratios).mean()) == pytest.approx(1.0, abs=0.03)


def mean_gradient(given: Problem, name: str, num_negatives: int, draws: int, correction: bool = True) -> Tensor:
    """Mean over draws of the gradient of the table, [R, D]; in a batch as large as the number of negatives."""
    sampler, generator = sampler_of(name), torch.Generator().manual_seed(3)
    total_RD = torch.zeros_like(given.table_RD)
    for _ in range(draws):
        others = torch.multinomial(COUNTS_R, num_negatives, replacement=True, generator=generator)
        negatives = sampler.draw(num_negatives, torch.cat([given.target_rows_M, others]), generator)
        total_RD += gradients(sampled(given, negatives, correction=correction), given)[1]
    return total_RD / draws


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_gradient_of_the_loss_tends_to_the_exact_one(name: str) -> None:
    """Its bias falls as one over the number of negatives; 1024 of a catalogue of 40 items leave next to nothing."""
    given = problem(8)
    exact_RD = gradients(full(given), given)[1]
    few, some, many = (
        relative_error(mean_gradient(given, name, count, draws), exact_RD) for count, draws in ((4, 500), (32, 300), (1024, 100))
    )
    assert few > 1.5 * some > 2 * many
    assert many < 0.025


@pytest.mark.parametrize("name", ["log_uniform", "popularity", "in batch", "mixed"])
def test_without_the_correction_the_gradient_stays_wrong(name: str) -> None:
    given = problem(8)
    exact_RD = gradients(full(given), given)[1]
    assert relative_error(mean_gradient(given, name, 1024, 30, correction=False), exact_RD) > 0.1


# gBCE


def generalised(given: Problem, negatives: Negatives, calibration: float, temperature: float = 1.0) -> Tensor:
    return gbce(*given.parts(), negatives, calibration=calibration, temperature=temperature)


def naive_gbce(given: Problem, rows: list[int], calibration: float, temperature: float = 1.0) -> Tensor:
    """As in the paper: the sigmoid of the target to the power beta."""
    alpha = len(rows) / (len(given.table_RD) - FIRST_ITEM_ROW - 1)
    beta = alpha * ((1 - 1 / alpha) * calibration + 1 / alpha)
    total = torch.zeros((), dtype=given.table_RD.dtype)
    for query_D, target, weight in zip(given.query_MD, given.target_rows_M.tolist(), given.weights_M, strict=True):
        of_position = torch.log(torch.sigmoid(query_D @ given.table_RD[target] / temperature) ** beta)
        for row in rows:
            if row != target:
                of_position = of_position + torch.log(1 - torch.sigmoid(query_D @ given.table_RD[row] / temperature))
        total = total - weight * of_position / (len(rows) + 1)
    return total


@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("num_negatives", [1, 2, 39, 100])
@pytest.mark.parametrize("calibration", [0.0, 0.3, 1.0])
def test_gbce_is_the_written_out_one(positions: int, num_negatives: int, calibration: float) -> None:
    """In float64 exactly, in float32 as far as that goes."""
    given = problem(positions)
    rows_N = torch.randint(FIRST_ITEM_ROW, NUM_ROWS, (num_negatives,), generator=torch.Generator().manual_seed(0))
    rows_N[0] = given.target_rows_M[0]  # an accidental hit
    for one in (given, given.double()):
        for temperature in (1.0, 0.7):
            theirs = naive_gbce(one, rows_N.tolist(), calibration, temperature)
            assert_same(generalised(one, negatives_of(rows_N), calibration, temperature), theirs, one)


def test_gbce_without_calibration_is_binary_cross_entropy() -> None:
    """That of torch; no negative here is a target."""
    given = problem(4)
    rows_N = torch.tensor([row for row in range(FIRST_ITEM_ROW, NUM_ROWS) if row not in given.target_rows_M.tolist()][:10])
    logits = given.query_MD @ given.table_RD.T
    logits_ML = torch.cat([logits.gather(1, given.target_rows_M[:, None]), logits[:, rows_N]], dim=1)
    labels_ML = torch.zeros_like(logits_ML)
    labels_ML[:, 0] = 1.0
    theirs = (F.binary_cross_entropy_with_logits(logits_ML, labels_ML, reduction="none").mean(1) * given.weights_M).sum()
    assert_same(generalised(given, negatives_of(rows_N), 0.0), theirs, given)


@given_values(st.integers(1, 1000), st.integers(2, 10**9), st.floats(0, 1))
def test_the_power_is_that_of_the_paper(num_negatives: int, num_items: int, calibration: float) -> None:
    alpha = num_negatives / (num_items - 1)
    power = gbce_power(num_negatives, num_items, calibration)
    assert power == pytest.approx(alpha * ((1 - 1 / alpha) * calibration + 1 / alpha), rel=1e-6, abs=1e-12)
    assert gbce_power(num_negatives, num_items, 0.0) == 1.0
    assert gbce_power(num_negatives, num_items, 1.0) == pytest.approx(alpha, rel=1e-6, abs=1e-12)


def test_full_calibration_makes_probabilities_those_of_all_negatives() -> None:
    """What the calibration is for: where the loss is least, the sigmoid is the share of the item among targets, for any N.

    One query asks 1,000 times, and an item is the answer 200 times; with t = 0 it would be given far more than 0.2.
    """
    num_items, asked, right = 40, 1000, 200
    found = []
    for num_negatives, calibration in ((1, 1.0), (20, 1.0), (1, 0.0)):
        power = gbce_power(num_negatives, num_items, calibration)
        appearances = (asked - right) * num_negatives / (num_items - 1)  # as a negative, in expectation
        logits = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
        loss = right * power * F.softplus(-logits) + appearances * F.softplus(logits)
        found.append(float(torch.sigmoid(logits[loss.argmin()])))
    assert found[:2] == pytest.approx([0.2, 0.2], abs=1e-3)
    assert found[2] == pytest.approx(200 / (200 + 800 / 39), abs=1e-3)


@pytest.mark.parametrize("scale", [200.0, -200.0])
def test_gbce_is_stable(scale: float) -> None:
    """Sigmoids of +-200 round to 0 and 1 in float32, and their logarithms would be infinite or lost; the loss is as in float64."""
    table_RD = torch.tensor([[0.0], [0.0], [1.0], [-1.0], [0.5]])
    given = Problem(torch.tensor([[scale]], requires_grad=True), table_RD.requires_grad_(), torch.tensor([2]), torch.ones(1))
    negatives = negatives_of(torch.tensor([3, 4, 4]))
    loss = generalised(given, negatives, 0.75)
    torch.testing.assert_close(loss.double(), generalised(given.double(), negatives, 0.75), rtol=1e-6, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(50.0 if scale > 0 else (200 * gbce_power(3, 3, 0.75) + 200) / 4)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, given))


def test_gbce_of_one_item_asks_only_for_it() -> None:
    """Every negative is a hit."""
    given = problem(2, num_rows=FIRST_ITEM_ROW + 1)
    loss = generalised(given, negatives_of(torch.full((3,), FIRST_ITEM_ROW)), 0.0)
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
    negatives = Negatives(torch.tensor([5, 9, 30]), torch.tensor([0.1, 0.3, 0.02], dtype=torch.float64).log())

    def loss(weights: list[float], places: list[int]) -> float:
        part = Problem(given.query_MD[places], given.table_RD, given.target_rows_M[places], torch.tensor(weights))
        return float(loss_of(kind, part, negatives).detach())

    assert loss([2.0, 0.0, 1.0], [0, 1, 2]) == pytest.approx(loss([1.0, 1.0, 1.0], [0, 0, 2]), rel=1e-5)
    assert loss([4.0, 0.0, 1.0], [0, 1, 2]) != pytest.approx(loss([2.0, 0.0, 1.0], [0, 1, 2]), rel=1e-2)


@pytest.mark.parametrize("kind", ["sampled", "gbce"])
def test_rows_beyond_float32_are_told_apart(kind: str) -> None:
    """Two neighbours that are one number in float32: the target and a negative, which is no hit."""
    first, second = BEYOND_FLOAT32 - 1, BEYOND_FLOAT32
    table_RD = torch.zeros(second + 2, 1)
    table_RD[first], table_RD[second] = 2.0, -1.0
    given = Problem(torch.ones(1, 1), table_RD, torch.tensor([first]), torch.ones(1))
    negatives = negatives_of(torch.tensor([second, first]), 0.5)
    num_items = second + 2 - FIRST_ITEM_ROW
    expected = {
        "sampled": math.log(math.exp(2) + math.exp(-1)) - 2,
        "gbce": (gbce_power(2, num_items, 0.75) * math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 3,
    }
    assert float(loss_of(kind, given, negatives)) == pytest.approx(expected[kind], rel=1e-5)


def test_the_loss_of_torch_agrees() -> None:
    """One more opinion on the naive oracle itself."""
    given = problem(6)
    losses_M = F.cross_entropy(given.query_MD @ given.table_RD[FIRST_ITEM_ROW:].T, given.target_rows_M - FIRST_ITEM_ROW, reduction="none")
    torch.testing.assert_close(naive(given), (losses_M * given.weights_M).sum(), atol=1e-4, rtol=1e-5)
