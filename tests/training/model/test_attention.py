"""Attention kernels against each other, and the gradient of the time bias.

Shape legend: B sequences, L length, H heads, K width of a head, N time buckets.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from training.model.attention import AttentionBias, DenseAttention, FlexAttention, time_bias


def test_time_bias_gradient_sums_every_use() -> None:
    ours_NH, plain_NH = (torch.zeros(128, 2).requires_grad_() for _ in range(2))
    buckets_BLL = torch.randint(0, 128, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    weights_BHLL = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    (time_bias(ours_NH, buckets_BLL) * weights_BHLL).sum().backward()
    (plain_NH[buckets_BLL].permute(0, 3, 1, 2) * weights_BHLL).sum().backward()
    assert ours_NH.grad is not None and plain_NH.grad is not None
    torch.testing.assert_close(ours_NH.grad, plain_NH.grad)


@dataclass
class Problem:
    """Projected heads of padded sequences, and their biases."""

    heads: tuple[Tensor, Tensor, Tensor]
    table_NH: Tensor | None
    bias: AttentionBias


def problem(*, directions: list[int], timed: bool, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    lengths = [37, 12, 1]
    visible_BL = torch.stack([torch.arange(37) >= 37 - length for length in lengths])
    visible_BL[0, 20:23] = False
    query_BHLK, key_BHLK, value_BHLK = (
        torch.randn(3, 2, 37, 16, generator=generator).to(device) for _ in range(3)
    )
    buckets_BLL = torch.randint(0, 128, (3, 37, 37), generator=generator).to(device) if timed else None
    table_NH = torch.randn(128, 2, generator=generator).to(device) if timed else None
    slopes_H = torch.tensor([0.5, 0.03], device=device)
    bias = AttentionBias(
        visible_BL.to(device), slopes_H, torch.tensor(directions, device=device), buckets_BLL
    )
    return Problem((query_BHLK, key_BHLK, value_BHLK), table_NH, bias)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("directions", [[0], [1], [0, 0], [1, 1], [1, -1]])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@torch.no_grad()
def test_attention_kernels_agree(directions: list[int], timed: bool, device: str) -> None:
    posed = problem(directions=directions, timed=timed, device=device)
    dense_BHLK = DenseAttention(posed.bias)(*posed.heads, posed.table_NH, None)
    flex_BHLK = FlexAttention(posed.bias, kernel=flex_attention)(*posed.heads, posed.table_NH, None)
    torch.testing.assert_close(flex_BHLK, dense_BHLK, atol=2e-5, rtol=2e-5)
    query_BHLK, *others = posed.heads
    columns_BP = torch.tensor([[36, 3], [36, 30], [36, 36]], device=device)
    query_BHPK = torch.stack([query_BHLK[row][:, columns] for row, columns in enumerate(columns_BP.tolist())])
    for attention in (
        DenseAttention(posed.bias),
        FlexAttention(posed.bias, kernel=flex_attention),
    ):
        some_BHPK = attention(query_BHPK, *others, posed.table_NH, columns_BP)
        for row, columns in enumerate(columns_BP.tolist()):
            torch.testing.assert_close(some_BHPK[row], dense_BHLK[row][:, columns], atol=2e-5, rtol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("directions", [[0], [1], [0, 0], [1, 1], [1, -1]])
@pytest.mark.parametrize("timed", [False, True])
def test_attention_kernel_gradients_agree(directions: list[int], timed: bool) -> None:
    posed = problem(directions=directions, timed=timed, device="cuda")
    leaves = [*posed.heads, *([] if posed.table_NH is None else [posed.table_NH])]
    gradients = []
    for attention in (DenseAttention(posed.bias), FlexAttention(posed.bias)):
        for leaf in leaves:
            leaf.requires_grad_()
            leaf.grad = None
        (attention(*posed.heads, posed.table_NH, None) ** 2).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for dense, flex in zip(*gradients, strict=True):
        torch.testing.assert_close(flex, dense, atol=1e-3, rtol=1e-3)
