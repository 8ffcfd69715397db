"""Full softmax equals cross entropy; sampled softmax estimates it, which it would not without its correction.

Shape legend: M positions, D width, R item rows, N negatives, S draws of the negatives.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from training.losses import full_softmax, sampled_softmax
from training.samplers import PopularitySampler, Sampler, UniformSampler

NUM_ROWS, DIM = 42, 6
NUM_ITEMS = NUM_ROWS - FIRST_ITEM_ROW


@dataclass
class Problem:
    """Some positions with their targets, over a small catalogue."""

    query_MD: Tensor
    table_RD: Tensor
    target_rows_M: Tensor
    weights_M: Tensor


def problem(positions: int, seed: int = 0, num_rows: int = NUM_ROWS, scale: float = 1.0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    return Problem(
        (scale * torch.randn(positions, DIM, generator=generator)).requires_grad_(),
        torch.randn(num_rows, DIM, generator=generator, requires_grad=True),
        torch.randint(FIRST_ITEM_ROW, num_rows, (positions,), generator=generator),
        torch.rand(positions, generator=generator) + 0.5,
    )


def naive(given: Problem) -> Tensor:
    """Weighted sum of -log softmax, one position and one item at a time."""
    total = torch.zeros(())
    for query_D, target, weight in zip(given.query_MD, given.target_rows_M, given.weights_M, strict=True):
        logits = torch.stack([query_D @ given.table_RD[row] for row in range(FIRST_ITEM_ROW, len(given.table_RD))])
        total = total - weight * torch.log(torch.exp(query_D @ given.table_RD[target]) / torch.exp(logits).sum())
    return total


def full(given: Problem, max_logits: int = 3 * NUM_ITEMS) -> Tensor:
    return full_softmax(given.query_MD, given.table_RD, given.target_rows_M, given.weights_M, max_logits)


def gradients(loss: Tensor, given: Problem) -> tuple[Tensor, Tensor]:
    query_MD, table_RD = torch.autograd.grad(loss, (given.query_MD, given.table_RD))
    return query_MD, table_RD


@pytest.mark.parametrize("positions", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("max_logits", [1, 3 * NUM_ITEMS, 5 * NUM_ITEMS - 1, 8 * NUM_ITEMS, 2**24])
def test_full_softmax_is_cross_entropy_chunked_or_not(positions: int, max_logits: int) -> None:
    """In chunks of 1, 3, 4 and 8 positions, and all at once."""
    given = problem(positions)
    loss = full(given, max_logits)
    torch.testing.assert_close(loss, naive(given), atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(gradients(loss, given), gradients(naive(given), given), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


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


def sampled(given: Problem, negative_rows_N: Tensor, sampler: Sampler) -> Tensor:
    return sampled_softmax(given.query_MD, given.table_RD, given.target_rows_M, given.weights_M, negative_rows_N, sampler)


def naive_sampled(given: Problem, negative_rows: list[int], probability: dict[int, float]) -> Tensor:
    """The estimate of the denominator written out: the target once, and exp(logit) / (N q) for each other negative."""
    total = torch.zeros(())
    for query_D, target, weight in zip(given.query_MD, given.target_rows_M.tolist(), given.weights_M, strict=True):
        denominator = torch.exp(query_D @ given.table_RD[target])
        for row in negative_rows:
            if row != target:
                denominator = denominator + torch.exp(query_D @ given.table_RD[row]) / (len(negative_rows) * probability[row])
        total = total + weight * (torch.log(denominator) - query_D @ given.table_RD[target])
    return total


def popularity_sampler(num_rows: int = NUM_ROWS, seed: int = 1) -> PopularitySampler:
    """Counts from 0 to some hundreds."""
    generator = torch.Generator().manual_seed(seed)
    return PopularitySampler(torch.floor(torch.exp(6 * torch.rand(num_rows, generator=generator, dtype=torch.float64)) - 1))


SAMPLERS: list[Sampler] = [UniformSampler(NUM_ROWS), popularity_sampler()]
sampler_ids = ["uniform", "popularity"]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=sampler_ids)
@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("num_negatives", [1, 2, 30])
def test_sampled_softmax_is_the_written_out_one(sampler: Sampler, positions: int, num_negatives: int) -> None:
    given = problem(positions)
    negative_rows_N = sampler.draw(num_negatives, torch.Generator().manual_seed(0))
    negative_rows_N[0] = given.target_rows_M[0]  # an accidental hit
    probability = dict(enumerate(sampler.log_probability(torch.arange(NUM_ROWS)).exp().tolist()))
    loss, slow = sampled(given, negative_rows_N, sampler), naive_sampled(given, negative_rows_N.tolist(), probability)
    torch.testing.assert_close(loss, slow, atol=1e-4, rtol=1e-5)
    for ours, theirs in zip(gradients(loss, given), gradients(slow, given), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_accidental_hits_are_left_out() -> None:
    """With nothing but the target among the negatives there is nothing to tell it from: no loss, no gradient."""
    given = problem(1)
    loss = sampled(given, given.target_rows_M.repeat(4), SAMPLERS[0])
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert all(not gradient.any() for gradient in gradients(loss, given))
    assert float(sampled(given, given.target_rows_M - 1, SAMPLERS[0]).detach()) > 0, "the neighbour is no hit"


def test_a_negative_is_a_hit_for_its_own_position_only() -> None:
    given = problem(2)
    negatives_N = given.target_rows_M[:1]
    alone = [
        Problem(
            given.query_MD[place : place + 1], given.table_RD, given.target_rows_M[place : place + 1], given.weights_M[place : place + 1]
        )
        for place in (0, 1)
    ]
    assert float(sampled(alone[0], negatives_N, SAMPLERS[0]).detach()) == pytest.approx(0.0, abs=1e-6)
    expected = sampled(alone[1], negatives_N, SAMPLERS[0])
    torch.testing.assert_close(sampled(given, negatives_N, SAMPLERS[0]), expected)
    assert float(expected.detach()) > 0


def estimated_denominators(given: Problem, sampler: Sampler, num_negatives: int, draws: int) -> Tensor:
    """[S] denominators of the single position of `given`, one a draw: loss = log(denominator) - logit of the target."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        target_logit = given.query_MD[0] @ given.table_RD[given.target_rows_M[0]]
        unweighted = Problem(given.query_MD, given.table_RD, given.target_rows_M, torch.ones(1))
        losses = [sampled(unweighted, sampler.draw(num_negatives, generator), sampler) for _ in range(draws)]
        return torch.exp(torch.stack(losses).double() + target_logit)


class Uncorrected:
    """What sampling by popularity would be if the loss took it for uniform: the draws of one, the probability of the other."""

    def __init__(self, sampler: Sampler) -> None:
        self.draw = sampler.draw
        self.log_probability = UniformSampler(NUM_ROWS).log_probability


@pytest.mark.parametrize("sampler", SAMPLERS, ids=sampler_ids)
@pytest.mark.parametrize("num_negatives", [1, 3, 20])
def test_the_denominator_is_unbiased(sampler: Sampler, num_negatives: int) -> None:
    given = problem(1, scale=0.3)
    exact = float(torch.exp(given.query_MD[0].detach() @ given.table_RD.detach()[FIRST_ITEM_ROW:].T).sum())
    estimates_S = estimated_denominators(given, sampler, num_negatives, draws=1500)
    standard_error = float(estimates_S.std()) / 1500**0.5
    assert standard_error < 0.2 * exact, "too few draws to tell"
    assert float(estimates_S.mean()) == pytest.approx(exact, abs=4 * standard_error)


def test_without_the_correction_the_denominator_is_biased() -> None:
    given = problem(1, scale=0.3)
    exact = float(torch.exp(given.query_MD[0].detach() @ given.table_RD.detach()[FIRST_ITEM_ROW:].T).sum())
    estimates_S = estimated_denominators(given, Uncorrected(popularity_sampler()), 20, draws=1500)
    assert abs(float(estimates_S.mean()) - exact) > 10 * float(estimates_S.std()) / 1500**0.5


def mean_gradient(given: Problem, sampler: Sampler, num_negatives: int, draws: int) -> Tensor:
    """Mean over draws of the gradient of the table, [R, D]."""
    generator = torch.Generator().manual_seed(3)
    total_RD = torch.zeros_like(given.table_RD)
    for _ in range(draws):
        total_RD += gradients(sampled(given, sampler.draw(num_negatives, generator), sampler), given)[1]
    return total_RD / draws


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).norm() / truth.norm())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=sampler_ids)
def test_the_gradient_tends_to_the_exact_one(sampler: Sampler) -> None:
    """Its bias falls as one over the number of negatives; 256 of a catalogue of 40 items leave next to nothing."""
    given = problem(8)
    exact_RD = gradients(full(given), given)[1]
    few, some, many = (
        relative_error(mean_gradient(given, sampler, count, draws), exact_RD) for count, draws in ((4, 800), (32, 400), (1024, 100))
    )
    assert few > 1.5 * some > 2 * many
    assert many < 0.02


def test_without_the_correction_the_gradient_stays_wrong() -> None:
    given = problem(8)
    exact_RD = gradients(full(given), given)[1]
    assert relative_error(mean_gradient(given, Uncorrected(popularity_sampler()), 1024, 100), exact_RD) > 0.2


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_weights_weigh(kind: str) -> None:
    """A position of weight 2 counts as two of weight 1, one of weight 0 not at all."""
    given = problem(3)
    negatives_N = torch.tensor([5, 9, 30])

    def loss(weights: list[float], places: list[int]) -> float:
        part = Problem(given.query_MD[places], given.table_RD, given.target_rows_M[places], torch.tensor(weights))
        if kind == "full":
            return float(full(part, 2 * NUM_ITEMS).detach())
        return float(sampled(part, negatives_N, SAMPLERS[1]).detach())

    assert loss([2.0, 0.0, 1.0], [0, 1, 2]) == pytest.approx(loss([1.0, 1.0, 1.0], [0, 0, 2]), rel=1e-5)


def test_the_loss_of_torch_agrees() -> None:
    """One more opinion on the naive oracle itself."""
    given = problem(6)
    losses_M = F.cross_entropy(given.query_MD @ given.table_RD[FIRST_ITEM_ROW:].T, given.target_rows_M - FIRST_ITEM_ROW, reduction="none")
    torch.testing.assert_close(naive(given), (losses_M * given.weights_M).sum(), atol=1e-4, rtol=1e-5)
