"""Samplers draw what they say they draw.

Shape legend: R item rows (special rows included), N draws.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passerelle.ids import FIRST_ITEM_ROW
from training.samplers import PopularitySampler, Sampler, UniformSampler

counts = st.lists(st.integers(0, 10**6), min_size=1, max_size=40)


def make_samplers(counts_of_items: list[int]) -> list[Sampler]:
    counts_R = torch.tensor([5.0, 7.0, *counts_of_items], dtype=torch.float64)  # what stands in the special rows must not matter
    return [UniformSampler(len(counts_R)), PopularitySampler(counts_R)]


@given(counts_of_items=counts, seed=st.integers(0, 2**62), count=st.integers(1, 50))
def test_draws_are_items_and_have_a_probability(counts_of_items: list[int], seed: int, count: int) -> None:
    num_rows = FIRST_ITEM_ROW + len(counts_of_items)
    for sampler in make_samplers(counts_of_items):
        rows_N = sampler.draw(count, torch.Generator().manual_seed(seed))
        assert (rows_N.dtype, rows_N.shape) == (torch.int64, (count,))
        assert int(rows_N.min()) >= FIRST_ITEM_ROW
        assert int(rows_N.max()) < num_rows
        log_probability_N = sampler.log_probability(rows_N)
        assert (log_probability_N.dtype, log_probability_N.shape) == (torch.float32, (count,))
        assert torch.isfinite(log_probability_N).all()
        assert torch.equal(rows_N, sampler.draw(count, torch.Generator().manual_seed(seed)))


@given(counts_of_items=counts)
def test_probabilities_of_items_sum_to_one(counts_of_items: list[int]) -> None:
    rows_I = torch.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + len(counts_of_items))
    for sampler in make_samplers(counts_of_items):
        assert float(sampler.log_probability(rows_I).double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_popularity_by_hand() -> None:
    """Counts 0, 2, 5 with one added to each: 1, 3 and 6 of 10."""
    _, sampler = make_samplers([0, 2, 5])
    assert sampler.log_probability(torch.tensor([2, 3, 4, 2])).exp().tolist() == pytest.approx([0.1, 0.3, 0.6, 0.1])


def test_uniform_by_hand() -> None:
    sampler, _ = make_samplers([0, 2, 5, 8])
    assert sampler.log_probability(torch.tensor([2, 5])).exp().tolist() == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize("place", [0, 1], ids=["uniform", "popularity"])
def test_frequencies_are_the_probabilities(place: int) -> None:
    """Pearson's chi-square of 200,000 draws; with 20 degrees of freedom it passes 45.3 once in a thousand."""
    sampler = make_samplers([0, 1, 3, 10, 100, 0, 50, 7, 7, 7, 2, 30, 5, 5, 80, 1, 1, 0, 60, 9, 4])[place]
    draws = 200_000
    rows_N = torch.cat([sampler.draw(draws // 10, torch.Generator().manual_seed(seed)) for seed in range(10)])
    observed_I = np.bincount(rows_N.numpy(), minlength=FIRST_ITEM_ROW + 21)[FIRST_ITEM_ROW:]
    expected_I = draws * sampler.log_probability(torch.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + 21)).double().exp().numpy()
    assert ((observed_I - expected_I) ** 2 / expected_I).sum() < 45.3


def test_an_overwhelming_item_leaves_the_others_their_chance() -> None:
    """The rare ones keep a finite correction, though float32 would swallow their share of the sum."""
    _, sampler = make_samplers([10**12, 0])
    log_probability = sampler.log_probability(torch.tensor([2, 3]))
    assert log_probability.tolist() == pytest.approx([0.0, -np.log(1e12)], abs=1e-3)


def test_draws_do_not_touch_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    for sampler in make_samplers([1, 2, 3]):
        sampler.draw(10, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)
