"""Samplers draw what they say they draw.

Shape legend: R item rows (special rows included), I items, M positions, N draws.
"""

import math
from collections.abc import Callable
from itertools import chain

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passerelle.config import validate
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from training.config import LossConfig
from training.samplers import (
    CatalogueSampler,
    CountedFrequency,
    InBatchSampler,
    LogUniformSampler,
    MixedSampler,
    Negatives,
    PopularitySampler,
    Sampler,
    StreamingFrequency,
    StreamingSampler,
    UniformSampler,
    make_sampler,
)
from training.samplers.ranks import gather_rows

BEYOND_FLOAT32 = 2**24 + 1  # the first integer that float32 has not

counts = st.lists(st.integers(0, 10**6), min_size=1, max_size=40)

CONFIGS: dict[str, dict[str, object]] = {
    "uniform": {},
    "log_uniform": {"sampler": "log_uniform"},
    "popularity": {"sampler": "popularity"},
    "flattened popularity": {"sampler": "popularity", "popularity_exponent": 0.5},
    "streaming": {"sampler": "streaming", "streaming_rate": 0.05},
    "in batch": {"sampler": "in_batch"},
    "in batch, streaming": {"sampler": "in_batch", "in_batch_frequency": "streaming"},
    "mixed": {"sampler": "mixed"},
    "mostly in batch": {"sampler": "mixed", "in_batch_share": 0.75},
}
CATALOGUE = ["uniform", "log_uniform", "popularity", "flattened popularity", "streaming"]


def make(name: str, counts_of_items: list[int]) -> Sampler:
    counts_R = torch.tensor([5.0, 7.0, *counts_of_items], dtype=torch.float64)  # what stands in the special rows must not matter
    return make_sampler(LossConfig.model_validate({"kind": "sampled", **CONFIGS[name]}), counts_R)


def make_catalogue(name: str, counts_of_items: list[int]) -> CatalogueSampler:
    sampler = make(name, counts_of_items)
    assert isinstance(sampler, CatalogueSampler)
    return sampler


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_rows(num_items: int) -> Tensor:
    return torch.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + num_items)


# What every sampler keeps to


@given(name=st.sampled_from(list(CONFIGS)), counts_of_items=counts, seed=st.integers(0, 2**62), count=st.integers(1, 50), data=st.data())
def test_draws_are_items_and_have_a_probability(name: str, counts_of_items: list[int], seed: int, count: int, data: st.DataObject) -> None:
    counts_of_items = [number + 1 for number in counts_of_items]  # targets have been counted
    num_rows = FIRST_ITEM_ROW + len(counts_of_items)
    targets = data.draw(st.lists(st.integers(FIRST_ITEM_ROW, num_rows - 1), max_size=30))
    target_rows_M = torch.tensor(targets, dtype=torch.int64)
    drawn = [make(name, counts_of_items).draw(count, target_rows_M, seeded(seed)) for _ in range(2)]
    assert torch.equal(drawn[0].rows_N, drawn[1].rows_N)
    assert torch.equal(drawn[0].log_probability_N, drawn[1].log_probability_N)
    expected = min(count, len(targets)) if name.startswith("in batch") else count
    assert (drawn[0].rows_N.dtype, drawn[0].rows_N.shape) == (torch.int64, (expected,))
    assert (drawn[0].log_probability_N.dtype, drawn[0].log_probability_N.shape) == (torch.float64, (expected,))
    assert all(FIRST_ITEM_ROW <= row < num_rows for row in drawn[0].rows_N.tolist())
    assert torch.isfinite(drawn[0].log_probability_N).all()
    assert (drawn[0].log_probability_N <= 1e-9).all()


@given(name=st.sampled_from(CATALOGUE), counts_of_items=counts)
def test_probabilities_of_items_sum_to_one(name: str, counts_of_items: list[int]) -> None:
    sampler = make_catalogue(name, counts_of_items)
    for _ in range(3):
        probability_I = sampler.log_probability(all_rows(len(counts_of_items))).exp()
        assert float(probability_I.sum()) == pytest.approx(1.0, abs=1e-12)
        sampler.draw(3, all_rows(len(counts_of_items))[:5], seeded(0))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_one_item_is_certain(name: str) -> None:
    sampler = make(name, [3])
    negatives = sampler.draw(4, torch.full((1000,), FIRST_ITEM_ROW), seeded(0))
    assert negatives.rows_N.tolist() == [FIRST_ITEM_ROW] * 4
    assert negatives.log_probability_N.tolist() == pytest.approx([0.0] * 4, abs=1.1e-3)  # in the batch, 1 - 1 / 1000


@pytest.mark.parametrize("name", list(CONFIGS))
def test_draws_do_not_touch_the_global_generator(name: str) -> None:
    state = torch.random.get_rng_state()
    make(name, [1, 2, 3]).draw(2, torch.tensor([2, 3, 4]), seeded(0))
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
    """Counts 0, 2, 5 with one added to each: 1, 3 and 6 of 10; with 0, 3, 8 and an exponent of a half, 1, 2 and 3 of 6."""
    assert probabilities(make_catalogue("popularity", [0, 2, 5]), [2, 3, 4, 2]) == pytest.approx([0.1, 0.3, 0.6, 0.1])
    assert probabilities(make_catalogue("flattened popularity", [0, 3, 8]), [2, 3, 4]) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_log_uniform_by_hand() -> None:
    """Ranks of the counts 5, 9, 5, 1: the second, then the first and third, equal, in the order of their rows."""
    log2, log3, log4, log5 = (math.log(number) for number in (2, 3, 4, 5))
    expected = [(log3 - log2) / log5, log2 / log5, (log4 - log3) / log5, (log5 - log4) / log5]
    assert probabilities(make_catalogue("log_uniform", [5, 9, 5, 1]), [2, 3, 4, 5]) == pytest.approx(expected)


def test_in_batch_by_hand() -> None:
    """Four targets: a row that is a fifth of all events comes to a position of another row with probability 1/5 * 3/4."""
    targets = torch.tensor([3, 2, 3, 4])
    negatives = make("in batch", [2, 3, 5]).draw(9, targets, seeded(0))
    assert sorted(negatives.rows_N.tolist()) == [2, 3, 3, 4], "all of them, with repetitions"
    expected = {2: 0.2 * 0.75, 3: 0.3 * 0.75, 4: 0.5 * 0.75}
    for row, log_probability in zip(negatives.rows_N.tolist(), negatives.log_probability_N.tolist(), strict=True):
        assert math.exp(log_probability) == pytest.approx(expected[row])


@pytest.mark.parametrize(("count", "in_batch"), [(8, 4), (4, 2), (1, 0), (20, 5)])
def test_mixed_by_hand(count: int, in_batch: int) -> None:
    """Half from five targets, as far as they go (round(0.5) = 0); the last item has never been counted."""
    targets = torch.tensor([2, 2, 3, 3, 3])
    negatives = make("mixed", [2, 3, 5, 0]).draw(count, targets, seeded(1))
    assert set(negatives.rows_N[:in_batch].tolist()) <= {2, 3}
    share = in_batch / count
    expected = {row: share * frequency * 0.8 + (1 - share) / 4 for row, frequency in zip((2, 3, 4, 5), (0.2, 0.3, 0.5, 0.0), strict=True)}
    for row, log_probability in zip(negatives.rows_N.tolist(), negatives.log_probability_N.tolist(), strict=True):
        assert math.exp(log_probability) == pytest.approx(expected[row])


def test_taking_some_of_the_batch_takes_each_position_alike() -> None:
    """Three of six targets, without taking a position twice."""
    sampler = make("in batch", [1] * 6)
    rows = [sampler.draw(3, all_rows(6), seeded(seed)).rows_N.tolist() for seed in range(2000)]
    assert all(len(set(taken)) == 3 for taken in rows)
    times = [sum(row in taken for taken in rows) for row in range(2, 8)]
    assert all(abs(number - 1000) < 4 * 500**0.5 for number in times)


def test_an_uncounted_target_is_found_out() -> None:
    with pytest.raises(AssertionError, match="counts know nothing"):
        make("in batch", [1, 0]).draw(5, torch.tensor([2, 3]), seeded(0))


# Frequencies are the probabilities

FREQUENCIES = [1, 3, 10, 100, 2, 50, 7, 7, 7, 2, 30, 5, 5, 80, 1, 1, 4, 60, 9, 4, 20]
POOL = 25


def oracle(name: str, sampler: Sampler) -> list[float]:
    """Probability of each item, from its definition."""
    num_items, total = len(FREQUENCIES), sum(FREQUENCIES)
    ranks = sorted(range(num_items), key=lambda item: (-FREQUENCIES[item], item))
    formulas: dict[str, Callable[[int], float]] = {
        "uniform": lambda _: 1 / num_items,
        "log_uniform": lambda item: math.log((ranks.index(item) + 2) / (ranks.index(item) + 1)) / math.log(num_items + 1),
        "popularity": lambda item: (FREQUENCIES[item] + 1) / (total + num_items),
        "flattened popularity": lambda item: (FREQUENCIES[item] + 1) ** 0.5 / sum((count + 1) ** 0.5 for count in FREQUENCIES),
        "in batch": lambda item: FREQUENCIES[item] / total * (1 - 1 / POOL),
        "mixed": lambda item: 0.5 * FREQUENCIES[item] / total * (1 - 1 / POOL) + 0.5 / num_items,
        "mostly in batch": lambda item: 0.75 * FREQUENCIES[item] / total * (1 - 1 / POOL) + 0.25 / num_items,
    }
    if isinstance(sampler, StreamingSampler):
        return sampler.log_probability(all_rows(num_items)).exp().tolist()
    return [formulas[name](item) for item in range(num_items)]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "in batch, streaming"])
def test_frequencies_are_the_probabilities(name: str) -> None:
    """Pearson's chi-square of 40,000 draws in 2,000 steps; with 20 degrees of freedom it passes 45.3 once in a thousand.

    As the first position sees them, whose target is the first item; those of the 24 others are drawn from the frequencies.
    """
    sampler, generator, count, steps = make(name, FREQUENCIES), seeded(5), 20, 2000
    frequency_I = torch.tensor(FREQUENCIES, dtype=torch.float64)
    observed_I, expected_I = torch.zeros(len(FREQUENCIES)), torch.zeros(len(FREQUENCIES), dtype=torch.float64)
    for _ in range(steps):
        others = torch.multinomial(frequency_I, POOL - 1, replacement=True, generator=generator) + FIRST_ITEM_ROW
        probability_I = torch.tensor(oracle(name, sampler), dtype=torch.float64)
        negatives = sampler.draw(count, torch.cat([torch.tensor([FIRST_ITEM_ROW]), others]), generator)
        torch.testing.assert_close(negatives.log_probability_N.exp(), probability_I[negatives.rows_N - FIRST_ITEM_ROW])
        observed_I += torch.bincount(negatives.rows_N - FIRST_ITEM_ROW, minlength=len(FREQUENCIES))
        expected_I += count * probability_I
    first = 0 if isinstance(sampler, CatalogueSampler) else 1  # the own target is there anyway, and left out by the loss
    chi_square = float(((observed_I - expected_I) ** 2 / expected_I)[first:].sum())
    assert 3 < chi_square < 45.3


def test_an_overwhelming_item_leaves_the_others_their_chance() -> None:
    """The rare ones keep a finite correction, though float32 would swallow their share of the sum."""
    log_probability = make_catalogue("popularity", [10**12, 0]).log_probability(torch.tensor([2, 3]))
    assert log_probability.tolist() == pytest.approx([0.0, -math.log(1e12)], abs=1e-3)


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform", "popularity", "streaming", "in_batch", "mixed"])
def test_rows_beyond_float32_are_drawn_exactly(sampler: str) -> None:
    """All events are those of two rows that float32 cannot tell apart."""
    first, second = BEYOND_FLOAT32 - 1, BEYOND_FLOAT32
    counts_R = torch.zeros(second + 1, dtype=torch.float64)
    counts_R[first], counts_R[second] = 1e12, 3e12
    made = make_sampler(LossConfig.model_validate({"kind": "sampled", "sampler": sampler}), counts_R)
    targets = torch.tensor([second, first, second, second])
    if isinstance(made, StreamingSampler):
        for _ in range(3):
            made.frequency.observe(targets.repeat(10**4))
    rows = made.draw(4000, targets, seeded(0)).rows_N
    if sampler == "uniform":
        assert int((rows % 2).sum()) == pytest.approx(2000, abs=4 * 1000**0.5)
        return
    shares = {"log_uniform": math.log(2) / math.log(second), "popularity": 0.75, "streaming": 0.375, "in_batch": 0.75, "mixed": 0.00075}
    assert int((rows == second).sum()) / len(rows) == pytest.approx(shares[sampler], abs=0.03)
    assert int((rows == first).sum()) > 0


# Estimating frequencies while training


def observe_steps(frequency: StreamingFrequency, probability_I: Tensor, steps: int, generator: torch.Generator) -> None:
    for _ in range(steps):
        size = int(torch.randint(0, 60, (1,), generator=generator))
        rows = torch.multinomial(probability_I, size, replacement=True, generator=generator) if size else torch.empty(0, dtype=torch.int64)
        frequency.observe(rows + FIRST_ITEM_ROW)


def slow_streaming(steps: list[list[int]], num_items: int, rate: float) -> list[float]:
    """Frequencies of the items 0, 1, ..., one item at a time, from all it has been through."""
    weights = []
    for item in range(num_items):
        clock, last, gap, seen = num_items, 0, 0.0, 0
        for targets in steps:
            clock += len(targets)
            times = targets.count(item)
            if times:
                kept = min(1 - times / (seen + times), (1 - rate) ** times)
                gap, last, seen = kept * gap + (1 - kept) * (clock - last) / times, clock, seen + times
        weights.append(1 / (gap + (clock - last) / min(max(seen, 1), 1 / rate)))
    return [weight / sum(weights) for weight in weights]


@given(st.lists(st.lists(st.integers(0, 4), max_size=8), max_size=30), st.sampled_from([0.01, 0.3, 0.9]))
def test_streaming_is_the_slow_one(steps: list[list[int]], rate: float) -> None:
    frequency = StreamingFrequency(FIRST_ITEM_ROW + 5, rate)
    for targets in steps:
        frequency.observe(torch.tensor(targets, dtype=torch.int64) + FIRST_ITEM_ROW)
    assert frequency.log_probability(all_rows(5)).exp().tolist() == pytest.approx(slow_streaming(steps, 5, rate))


def test_streaming_of_few_events_is_counting() -> None:
    """As long as nothing is forgotten: 3, 1 and 1 of 5, where an item not seen counts as seen once."""
    frequency = StreamingFrequency(FIRST_ITEM_ROW + 3, 0.01)
    assert frequency.log_probability(all_rows(3)).exp().tolist() == pytest.approx([1 / 3] * 3)
    for rows in ([2], [3, 2], [], [2]):
        frequency.observe(torch.tensor(rows, dtype=torch.int64))
    assert frequency.log_probability(all_rows(3)).exp().tolist() == pytest.approx([3 / 5, 1 / 5, 1 / 5])


def test_streaming_converges_and_follows() -> None:
    """On a Zipfian distribution; then on the same in reverse. With a rate of 0.02, some 100 appearances have an error of 10 %."""
    probability_I = 1 / torch.arange(1, 31, dtype=torch.float64)
    probability_I /= probability_I.sum()
    frequency, generator = StreamingFrequency(FIRST_ITEM_ROW + 30, 0.02), seeded(2)
    for truth_I in (probability_I, probability_I.flip(0)):
        observe_steps(frequency, truth_I, 2500, generator)
        ratio_I = frequency.log_probability(all_rows(30)).exp() / truth_I
        assert float((ratio_I.log() ** 2).mean()) ** 0.5 < 0.15
        assert float(ratio_I.log().mean()) == pytest.approx(0.0, abs=0.08)


def test_streaming_forgets_an_item_that_is_gone() -> None:
    frequency = StreamingFrequency(FIRST_ITEM_ROW + 2, 0.1)
    frequency.observe(torch.tensor([2, 3] * 50))
    assert frequency.log_probability(torch.tensor([3])).exp().tolist() == pytest.approx([0.5])
    for _ in range(100):
        frequency.observe(torch.tensor([2] * 100))
    assert float(frequency.log_probability(torch.tensor([3])).exp()) < 0.01


def test_streaming_draws_before_it_looks() -> None:
    """The first step is drawn from the uniform start, whatever its targets are; the second is not."""
    sampler = make("streaming", [0] * 10)
    targets = torch.full((10_000,), 5)
    shares = [float((sampler.draw(1000, targets, seeded(3)).rows_N == 5).double().mean()) for _ in range(2)]
    assert shares[0] == pytest.approx(0.1, abs=0.04)
    assert shares[1] > 0.9


@pytest.mark.parametrize("name", ["streaming", "in batch, streaming"])
def test_a_restored_sampler_goes_on(name: str) -> None:
    generator = seeded(0)
    steps = [torch.randint(FIRST_ITEM_ROW, FIRST_ITEM_ROW + 9, (20,), generator=generator) for _ in range(12)]

    def draws(sampler: Sampler, steps: list[Tensor]) -> list[Negatives]:
        return [sampler.draw(6, targets, seeded(place)) for place, targets in enumerate(steps)]

    whole, first, second = make(name, [0] * 9), make(name, [0] * 9), make(name, [0] * 9)
    expected = draws(whole, steps[:6]) and draws(whole, steps[6:])
    draws(first, steps[:6])
    fresh = draws(make(name, [0] * 9), steps[6:])
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(draws(second, steps[6:]), expected, strict=True):
        assert torch.equal(ours.rows_N, theirs.rows_N)
        assert torch.equal(ours.log_probability_N, theirs.log_probability_N)
    assert not torch.equal(fresh[0].log_probability_N, expected[0].log_probability_N), "the state matters"


def test_only_what_is_learnt_is_in_the_checkpoint() -> None:
    streaming = {"frequency.clock", "frequency.last_R", "frequency.gap_R", "frequency.seen_R"}
    for name in CONFIGS:
        assert set(make(name, [1, 2]).state_dict()) == (streaming if "streaming" in name else set())


def test_in_batch_shows_the_step_to_its_frequency_after_asking() -> None:
    frequency = StreamingFrequency(FIRST_ITEM_ROW + 4, 0.01)
    sampler = InBatchSampler(frequency, gather=True)
    negatives = sampler.draw(9, torch.tensor([2, 2, 2, 3]), seeded(0))
    assert negatives.log_probability_N.exp().tolist() == pytest.approx([0.25 * 0.75] * 4)
    assert frequency.log_probability(torch.tensor([2])).exp().tolist() == pytest.approx([3 / 6])
    MixedSampler(frequency, FIRST_ITEM_ROW + 4, 0.5, gather=True).draw(9, torch.tensor([3]), seeded(0))
    assert int(frequency.seen_R[3]) == 2


# Several ranks

SHARES = [[7, 3, 3, 9], [2, 7]], [[], [5]], [[4, 4, 4], [4, 8, 9]], [[], []]
GATHERING: dict[str, Callable[[bool], Sampler]] = {
    "in batch": lambda gather: InBatchSampler(CountedFrequency(torch.arange(10.0)), gather=gather),
    "in batch, streaming": lambda gather: InBatchSampler(StreamingFrequency(10, 0.1), gather=gather),
    "mixed": lambda gather: MixedSampler(CountedFrequency(torch.arange(10.0)), 10, 0.5, gather=gather),
    "streaming": lambda _: StreamingSampler(StreamingFrequency(10, 0.1)),
    "uniform": lambda _: UniformSampler(10),
    "log_uniform": lambda _: LogUniformSampler(torch.arange(10.0)),
    "popularity": lambda _: PopularitySampler(torch.arange(10.0)),
}
Drawn = dict[str, list[Tensor]]


def draw_steps(rank: int | None, gather: bool = True) -> Drawn:
    """Rows, log-probabilities and state of each sampler after all steps, of one rank or of one process that has all targets."""
    drawn: Drawn = {"gathered": []}
    for shares in SHARES:
        mine = list(chain(*shares)) if rank is None else shares[rank]
        drawn["gathered"].append(gather_rows(torch.tensor(mine, dtype=torch.int64)))
    for name, factory in GATHERING.items():
        sampler = factory(gather)
        drawn[name] = []
        for step, shares in enumerate(SHARES):
            mine = list(chain(*shares)) if rank is None else shares[rank]
            negatives = sampler.draw(4, torch.tensor(mine, dtype=torch.int64), seeded(step))
            drawn[name] += [negatives.rows_N, negatives.log_probability_N]
        drawn[name] += list(sampler.state_dict().values())
    return drawn


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save((draw_steps(rank), draw_steps(rank, gather=False)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_draw_what_one_would(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, (str(folder),), nprocs=2)
    alone = draw_steps(None)
    for rank in (0, 1):
        together, apart = torch.load(folder / f"{rank}.pt")
        for name, expected in alone.items():
            assert len(together[name]) == len(expected)
            for ours, theirs in zip(together[name], expected, strict=True):
                assert torch.equal(ours, theirs), name
        for shares, rows in zip(SHARES, apart["in batch"][::2], strict=False):
            assert sorted(rows.tolist()) == sorted(shares[rank]), "its own, when they are not gathered"
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(apart["streaming"], alone["streaming"], strict=True))
        state = len(StreamingFrequency(3, 0.1).state_dict())
        assert all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(apart["in batch, streaming"][-state:], alone["in batch, streaming"][-state:], strict=True)
        ), "what is learnt is always learnt from all"


# Options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_negatives": 8}, "num_negatives = 8 has no effect without loss.kind = 'sampled' or 'gbce'"),
        ({"kind": "sampled", "max_logits": 8}, "max_logits = 8 has no effect without loss.kind = 'full'"),
        ({"sampler": "mixed"}, "sampler = 'mixed' has no effect without loss.kind = 'sampled'"),
        ({"kind": "gbce", "sampler": "popularity"}, "sampler = 'popularity' has no effect without loss.kind = 'sampled'"),
        ({"kind": "gbce", "log_q_correction": False}, "log_q_correction = False has no effect"),
        ({"kind": "sampled", "gbce_calibration": 0.5}, "gbce_calibration = 0.5 has no effect without loss.kind = 'gbce'"),
        ({"kind": "sampled", "popularity_exponent": 0.5}, "popularity_exponent = 0.5 has no effect without loss.sampler = 'popularity'"),
        ({"kind": "sampled", "sampler": "in_batch", "in_batch_share": 0.1}, "in_batch_share = 0.1 has no effect without"),
        ({"kind": "sampled", "in_batch_frequency": "streaming"}, "in_batch_frequency = 'streaming' has no effect without"),
        ({"kind": "sampled", "sampler": "in_batch", "streaming_rate": 0.1}, "streaming_rate = 0.1 has no effect without"),
        ({"kind": "sampled", "gather_negatives": False}, "gather_negatives = False has no effect without"),
        ({"temperature": 0.0}, "temperature: Input should be greater than 0"),
        ({"kind": "gbce", "gbce_calibration": 1.5}, "gbce_calibration: Input should be less than or equal to 1"),
        ({"kind": "sampled", "sampler": "popularity", "popularity_exponent": -1}, "popularity_exponent: Input should be greater than or"),
        ({"kind": "sampled", "sampler": "mixed", "in_batch_share": 1}, "in_batch_share: Input should be less than 1"),
        ({"kind": "sampled", "sampler": "streaming", "streaming_rate": 1}, "streaming_rate: Input should be less than 1"),
        ({"kind": "sampled", "sampler": "nearest"}, "sampler: Input should be 'uniform', 'log_uniform'"),
    ],
)
def test_idle_and_impossible_options_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(LossConfig, values, "loss")
    assert message in str(refused.value)


def test_a_resolved_configuration_is_accepted_again() -> None:
    """It names every option, those without effect at their defaults."""
    for values in CONFIGS.values():
        config = LossConfig.model_validate({"kind": "sampled", **values})
        assert LossConfig.model_validate(config.model_dump()) == config
