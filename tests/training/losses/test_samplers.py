"""Samplers draw what they say they draw.

Shape legend: R item rows (special rows included), I items, M positions, S draws, N negatives of each.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.samplers import CATALOGUE, CONFIGS, all_rows, make, make_catalogue, seeded
from training.loss_config import SampledLoss
from training.losses.samplers import CatalogueSampler, Sampler, StreamingSampler, make_sampler

BEYOND_FLOAT32 = 2**24 + 1  # the first integer that float32 has not

counts = st.lists(st.integers(0, 10**6), min_size=1, max_size=40)


# What every sampler keeps to


@given(
    name=st.sampled_from(list(CONFIGS)), counts_of_items=counts, seed=st.integers(0, 2**62), data=st.data()
)
def test_draws_are_items_with_finite_log_probabilities(
    name: str, counts_of_items: list[int], seed: int, data: st.DataObject
) -> None:
    counts_of_items = [number + 1 for number in counts_of_items]  # targets have been counted
    count = data.draw(
        st.integers(1 if name in CATALOGUE or name.startswith("in batch") else 3, 50)
    )  # of mixed ones some of both kinds
    num_rows = FIRST_ITEM_ROW + len(counts_of_items)
    targets = data.draw(st.lists(st.integers(FIRST_ITEM_ROW, num_rows - 1), max_size=30))
    target_rows_M = torch.tensor(targets, dtype=torch.int64)
    num_draws = data.draw(st.integers(1, 4))
    drawn = [
        make(name, counts_of_items).draw(num_draws, count, target_rows_M, seeded(seed)) for _ in range(2)
    ]
    assert torch.equal(drawn[0].rows_SN, drawn[1].rows_SN)
    assert torch.equal(drawn[0].log_probability_SN, drawn[1].log_probability_SN)
    whole = name.startswith("in batch") and len(targets) <= count
    expected = (1, len(targets)) if whole else (num_draws, count)
    pool = drawn[0].pool_indices
    assert (pool is None) == (name in CATALOGUE)
    if pool:
        taken = zip(pool.negatives_SN.flatten().tolist(), drawn[0].rows_SN.flatten().tolist(), strict=True)
        assert all(entry == -1 or sorted(targets)[entry] == row for entry, row in taken)
        assert [sorted(targets)[entry] for entry in pool.own_M.tolist()] == targets
    assert (drawn[0].rows_SN.dtype, drawn[0].rows_SN.shape) == (torch.int64, expected)
    assert (drawn[0].log_probability_SN.dtype, drawn[0].log_probability_SN.shape) == (torch.float64, expected)
    assert all(FIRST_ITEM_ROW <= row < num_rows for row in drawn[0].rows_SN.flatten().tolist())
    assert torch.isfinite(drawn[0].log_probability_SN).all()
    assert (drawn[0].log_probability_SN <= 1e-9).all()
    assert torch.equal(drawn[0].target_log_probability_M, drawn[1].target_log_probability_M)
    of_row = dict(
        zip(drawn[0].rows_SN.flatten().tolist(), drawn[0].log_probability_SN.flatten().tolist(), strict=True)
    )
    assert drawn[0].target_log_probability_M.dtype == torch.float64
    for row, log_probability in zip(targets, drawn[0].target_log_probability_M.tolist(), strict=True):
        if name in CATALOGUE or name.startswith("in batch"):
            assert log_probability == of_row.get(row, log_probability) <= 1e-9, (
                "the same for a target as for a negative"
            )
        else:
            assert log_probability < of_row.get(row, 0.0), "less, by what it has brought in itself"


@given(name=st.sampled_from(CATALOGUE), counts_of_items=counts)
def test_probabilities_of_items_sum_to_one(name: str, counts_of_items: list[int]) -> None:
    sampler = make_catalogue(name, counts_of_items)
    for _ in range(3):
        probability_I = sampler.log_probability(all_rows(len(counts_of_items))).exp()
        assert float(probability_I.sum()) == pytest.approx(1.0, abs=1e-12)
        sampler.draw(1, 3, all_rows(len(counts_of_items))[:5], seeded(0))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_single_item_has_probability_one(name: str) -> None:
    sampler = make(name, [3])
    negatives = sampler.draw(1, 4, torch.full((1000,), FIRST_ITEM_ROW), seeded(0))
    assert negatives.rows_SN[0].tolist() == [FIRST_ITEM_ROW] * 4
    assert negatives.log_probability_SN[0].tolist() == pytest.approx(
        [0.0] * 4, abs=1.1e-3
    )  # in the batch, 1 - 1 / 1000


@pytest.mark.parametrize("name", list(CONFIGS))
def test_draws_do_not_touch_the_global_generator(name: str) -> None:
    state = torch.random.get_rng_state()
    make(name, [1, 2, 3]).draw(2, 2, torch.tensor([2, 3, 4]), seeded(0))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_counts_of_zero_are_no_error_before_training() -> None:
    """Weights are loaded into a model that has not counted."""
    for name in CONFIGS:
        make(name, [0, 0, 0])


# By hand


def probabilities(sampler: CatalogueSampler, rows: list[int]) -> list[float]:
    return sampler.log_probability(torch.tensor(rows)).exp().tolist()


def test_uniform_by_hand() -> None:
    assert probabilities(make_catalogue("uniform", [0, 2, 5, 8]), [2, 5]) == pytest.approx([0.25, 0.25])


def test_popularity_by_hand() -> None:
    """Counts 0, 2, 5 with one added to each: 1, 3 and 6 of 10; with 0, 3, 8 and an exponent of a half, 1, 2
    and 3 of 6.
    """
    assert probabilities(make_catalogue("popularity", [0, 2, 5]), [2, 3, 4, 2]) == pytest.approx(
        [0.1, 0.3, 0.6, 0.1]
    )
    assert probabilities(make_catalogue("flattened popularity", [0, 3, 8]), [2, 3, 4]) == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6]
    )


def test_log_uniform_by_hand() -> None:
    """Ranks of the counts 5, 9, 5, 1: the second, then the first and third, equal, in the order of their
    rows.
    """
    log2, log3, log4, log5 = (math.log(number) for number in (2, 3, 4, 5))
    expected = [(log3 - log2) / log5, log2 / log5, (log4 - log3) / log5, (log5 - log4) / log5]
    assert probabilities(make_catalogue("log_uniform", [5, 9, 5, 1]), [2, 3, 4, 5]) == pytest.approx(expected)


def test_in_batch_by_hand() -> None:
    """Four targets: a row that is a fifth of all events comes to a position of another row with probability
    1/5 * 3/4.
    """
    targets = torch.tensor([3, 2, 3, 4])
    negatives = make("in batch", [2, 3, 5]).draw(1, 9, targets, seeded(0))
    assert sorted(negatives.rows_SN[0].tolist()) == [2, 3, 3, 4], "all of them, with repetitions"
    expected = {2: 0.2 * 0.75, 3: 0.3 * 0.75, 4: 0.5 * 0.75}
    for row, log_probability in zip(
        negatives.rows_SN[0].tolist(), negatives.log_probability_SN[0].tolist(), strict=True
    ):
        assert math.exp(log_probability) == pytest.approx(expected[row])


@pytest.mark.parametrize(("count", "in_batch"), [(8, 4), (4, 2), (1, 0), (20, 5)])
def test_mixed_by_hand(count: int, in_batch: int) -> None:
    """Half from five targets, as far as they go (round(0.5) = 0); given those, what counts say does not
    matter.
    """
    targets = torch.tensor([2, 2, 3, 3, 3])
    negatives = make("mixed", [2, 3, 5, 0]).draw(1, count, targets, seeded(1))
    assert set(negatives.rows_SN[0, :in_batch].tolist()) <= {2, 3}
    share = in_batch / count
    expected = {
        row: share * times / 5 + (1 - share) / 4
        for row, times in zip((2, 3, 4, 5), (2, 3, 0, 0), strict=True)
    }
    for row, log_probability in zip(
        negatives.rows_SN[0].tolist(), negatives.log_probability_SN[0].tolist(), strict=True
    ):
        assert math.exp(log_probability) == pytest.approx(expected[row])


def test_in_batch_draws_take_each_position_equally_often() -> None:
    """Three of eight targets, without taking a position twice in a draw, nor in two draws; the third is from
    all of them again.
    """
    sampler = make("in batch", [1] * 8)
    steps = [sampler.draw(3, 3, all_rows(8), seeded(seed)).rows_SN.tolist() for seed in range(1000)]
    assert all(len(set(first + second)) == 6 and len(set(third)) == 3 for first, second, third in steps)
    for draw in range(3):
        times = [sum(row in step[draw] for step in steps) for row in range(2, 10)]
        assert all(abs(number - 375) < 4 * (375 * 5 / 8) ** 0.5 for number in times)
    in_both = sum(len(set(third) & set(first)) for first, _, third in steps)
    assert in_both == pytest.approx(1000 * 9 / 8, rel=0.1), "by chance"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 5])
def test_a_target_without_counts_fails(count: int, seed: int) -> None:
    """Also when it is not drawn itself."""
    with pytest.raises(AssertionError, match="a target without counts"):
        make("in batch", [1, 0]).draw(1, count, torch.tensor([2, 3]), seeded(seed))


# Frequencies are the probabilities

FREQUENCIES = [1, 3, 10, 100, 2, 50, 7, 7, 7, 2, 30, 5, 5, 80, 1, 1, 4, 60, 9, 4, 20]
POOL = 25


def oracle(name: str, sampler: Sampler, targets: list[int]) -> list[float]:
    """Probability of each item, from its definition, in a step of these targets."""
    num_items, total = len(FREQUENCIES), sum(FREQUENCIES)
    ranks = sorted(range(num_items), key=lambda item: (-FREQUENCIES[item], item))
    formulas: dict[str, Callable[[int], float]] = {
        "uniform": lambda _: 1 / num_items,
        "log_uniform": lambda item: (
            math.log((ranks.index(item) + 2) / (ranks.index(item) + 1)) / math.log(num_items + 1)
        ),
        "popularity": lambda item: (FREQUENCIES[item] + 1) / (total + num_items),
        "flattened popularity": lambda item: (
            (FREQUENCIES[item] + 1) ** 0.5 / sum((count + 1) ** 0.5 for count in FREQUENCIES)
        ),
        "in batch": lambda item: FREQUENCIES[item] / total * (1 - 1 / POOL),
        "mixed": lambda item: 0.5 * targets.count(item + FIRST_ITEM_ROW) / POOL + 0.5 / num_items,
        "mostly in batch": lambda item: 0.75 * targets.count(item + FIRST_ITEM_ROW) / POOL + 0.25 / num_items,
    }
    if isinstance(sampler, StreamingSampler):
        return sampler.log_probability(all_rows(num_items)).exp().tolist()
    return [formulas[name](item) for item in range(num_items)]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "in batch, streaming"])
def test_draw_frequencies_match_the_reported_probabilities(name: str) -> None:
    """Pearson's chi-square of 40,000 draws in 2,000 steps; with 20 degrees of freedom it passes 45.3 once in
    a thousand.

    As the first position sees them, whose target is the first item; those of the 24 others are drawn from the
    frequencies.
    """
    sampler, generator, count, steps = make(name, FREQUENCIES), seeded(5), 20, 2000
    frequency_I = torch.tensor(FREQUENCIES, dtype=torch.float64)
    observed_I, expected_I = torch.zeros(len(FREQUENCIES)), torch.zeros(len(FREQUENCIES), dtype=torch.float64)
    hits = expected_hits = 0.0
    for _ in range(steps):
        others = (
            torch.multinomial(frequency_I, POOL - 1, replacement=True, generator=generator) + FIRST_ITEM_ROW
        )
        targets = torch.cat([torch.tensor([FIRST_ITEM_ROW]), others])
        probability_I = torch.tensor(oracle(name, sampler, targets.tolist()), dtype=torch.float64)
        negatives = sampler.draw(1, count, targets, generator)
        torch.testing.assert_close(
            negatives.log_probability_SN.exp(), probability_I[negatives.rows_SN - FIRST_ITEM_ROW]
        )
        observed_I += torch.bincount(negatives.rows_SN[0] - FIRST_ITEM_ROW, minlength=len(FREQUENCIES))
        expected_I += count * probability_I
        is_hit_N = negatives.rows_SN[0] == FIRST_ITEM_ROW
        if pool := negatives.pool_indices:
            is_hit_N &= pool.negatives_SN[0] != pool.own_M[0]
        hits += float(is_hit_N.sum())
        expected_hits += count * math.exp(negatives.target_log_probability_M[0])
    first = 1 if name == "in batch" else 0  # the own target is there anyway, and left out by the loss
    chi_square = float(((observed_I - expected_I) ** 2 / expected_I)[first:].sum())
    assert 3 < chi_square < 45.3
    assert abs(hits - expected_hits) < 4 * expected_hits**0.5, "of the first item, but for the own one"


def test_rare_items_keep_a_finite_probability_beside_a_dominant_one() -> None:
    """The rare ones keep a finite correction, though float32 would swallow their share of the sum."""
    log_probability = make_catalogue("popularity", [10**12, 0]).log_probability(torch.tensor([2, 3]))
    assert log_probability.tolist() == pytest.approx([0.0, -math.log(1e12)], abs=1e-3)


@pytest.mark.parametrize(
    "sampler", ["uniform", "log_uniform", "popularity", "streaming", "in_batch", "mixed"]
)
def test_rows_beyond_float32_are_drawn_exactly(sampler: str) -> None:
    """All events are those of two rows that float32 cannot tell apart."""
    first, second = BEYOND_FLOAT32 - 1, BEYOND_FLOAT32
    counts_R = torch.zeros(second + 1, dtype=torch.float64)
    counts_R[first], counts_R[second] = 1e12, 3e12
    made = make_sampler(SampledLoss.model_validate({"sampler": sampler}), counts_R)
    targets = torch.tensor([second, first, second, second])
    if isinstance(made, StreamingSampler):
        for _ in range(3):
            made.frequency.observe(targets.repeat(10**4))
    rows = made.draw(1, 4000, targets, seeded(0)).rows_SN[0]
    if sampler == "uniform":
        assert int((rows % 2).sum()) == pytest.approx(2000, abs=4 * 1000**0.5)
        return
    shares = {
        "log_uniform": math.log(2) / math.log(second),
        "popularity": 0.75,
        "streaming": 0.375,
        "in_batch": 0.75,
        "mixed": 0.00075,
    }
    assert int((rows == second).sum()) / len(rows) == pytest.approx(shares[sampler], abs=0.03)
    assert int((rows == first).sum()) > 0
