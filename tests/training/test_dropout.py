"""Dropout drops what it is told to, from a generator of its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.dropout import Dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_rate_and_mean(probability: float) -> None:
    """A million elements: four standard errors of the rate."""
    values = torch.ones(1000, 1000)
    dropped = Dropout(probability, 1, CPU)(values)
    standard_error = (probability * (1 - probability) / values.numel()) ** 0.5
    assert float((dropped == 0).float().mean()) == pytest.approx(probability, abs=4 * standard_error)
    assert float(dropped.double().mean()) == pytest.approx(1.0, abs=4 * standard_error / (1 - probability))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)], rel=1e-4)


def test_same_seed_same_masks_and_each_call_another() -> None:
    ours, theirs, other = (Dropout(0.5, seed, CPU) for seed in (7, 7, 8))
    values = torch.ones(64, 64)
    first, second = ours(values), ours(values)
    assert torch.equal(first, theirs(values))
    assert torch.equal(second, theirs(values))
    for different in (second, other(values)):
        assert float((first == different).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_neighbouring_seeds_are_independent() -> None:
    """A step's ranks use neighbouring seeds."""
    masks = torch.stack([Dropout(0.5, seed, CPU)(torch.ones(10_000)) for seed in range(8)]) - 1
    correlation = torch.corrcoef(masks) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.05


@given(seed=st.integers(0, 2**62), shape=st.sampled_from([(1,), (3, 1), (2, 3, 5)]))
def test_probability_zero_is_identity(seed: int, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Dropout(0.0, seed, CPU)(values), values)
    assert Dropout(0.3, seed, CPU)(values).shape == shape


def test_gradient_passes_where_values_do() -> None:
    values = torch.full((100, 100), 3.0, requires_grad=True)
    dropped = Dropout(0.25, 0, CPU)(values)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * 3, dropped.detach())


def test_dtype_stays_and_global_generators_are_left_alone() -> None:
    state = torch.random.get_rng_state()
    assert Dropout(0.5, 0, CPU)(torch.ones(10, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(torch.random.get_rng_state(), state)
