"""Dropout has the right rate, and depends on the token alone.

Shape legend: B sequences, L tokens, D width.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.model.dropout import Dropout


def tokens(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape)


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.9])
def test_rate_and_mean(probability: float) -> None:
    """The tolerance is four standard errors of a million elements, overall and for each channel."""
    values = torch.ones(100, 100, 100)
    dropped = Dropout(probability, 1, tokens(100, 100))(values)
    standard_error = (probability * (1 - probability) / values.numel()) ** 0.5
    assert float((dropped == 0).float().mean()) == pytest.approx(probability, abs=4 * standard_error)
    assert float(dropped.double().mean()) == pytest.approx(1.0, abs=4 * standard_error / (1 - probability))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)], rel=1e-4)
    assert float(((dropped == 0).float().mean((0, 1)) - probability).abs().max()) < 45 * standard_error


def test_masks_depend_on_seed_and_call() -> None:
    ours, theirs, other = (Dropout(0.5, seed, tokens(8, 8)) for seed in (7, 7, 8))
    values = torch.ones(8, 8, 64)
    first, second = ours(values), ours(values)
    assert torch.equal(first, theirs(values))
    assert torch.equal(second, theirs(values))
    for different in (second, other(values)):
        assert float((first == different).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_noise_depends_on_token_not_batch_position() -> None:
    """Compares with other rows of a smaller batch with other padding, as another worker has them."""
    values, token_BL = torch.ones(5, 7, 30), tokens(5, 7)
    whole, part = Dropout(0.5, 3, token_BL), Dropout(0.5, 3, token_BL[[4, 1], 2:])
    for _ in range(3):
        assert torch.equal(whole(values)[[4, 1], 2:], part(values[[4, 1], 2:]))


@pytest.mark.parametrize("what", ["seeds", "tokens", "calls", "channels"])
def test_neighbours_are_independent(what: str) -> None:
    if what == "seeds":
        masks = torch.stack(
            [Dropout(0.5, seed, tokens(10, 10))(torch.ones(10, 10, 100)).flatten() for seed in range(8)]
        )
    elif what == "tokens":
        masks = Dropout(0.5, 0, tokens(1, 8))(torch.ones(1, 8, 10_000))[0]
    elif what == "calls":
        dropout = Dropout(0.5, 0, tokens(10, 10))
        masks = torch.stack([dropout(torch.ones(10, 10, 100)).flatten() for _ in range(8)])
    else:
        masks = Dropout(0.5, 0, tokens(100, 100))(torch.ones(100, 100, 8)).flatten(0, 1).T
    assert float((torch.corrcoef(masks) - torch.eye(8)).abs().max()) < 0.05


@given(seed=st.integers(0, 2**62), width=st.sampled_from([1, 4, 5, 8]))
def test_probability_zero_is_identity(seed: int, width: int) -> None:
    values = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Dropout(0.0, seed, tokens(2, 3))(values), values)
    assert Dropout(0.3, seed, tokens(2, 3))(values).shape == values.shape


def test_gradient_passes_where_values_do() -> None:
    values = torch.full((10, 10, 100), 3.0, requires_grad=True)
    dropped = Dropout(0.25, 0, tokens(10, 10))(values)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * 3, dropped.detach())


def test_dtype_and_global_generator_are_unchanged() -> None:
    state = torch.random.get_rng_state()
    assert Dropout(0.5, 0, tokens(2, 2))(torch.ones(2, 2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(torch.random.get_rng_state(), state)
