"""Frequencies that are estimated while training, and samplers of several ranks.

Shape legend: R item rows (special rows included), I items, M positions, S draws, N negatives of each.
"""

from collections.abc import Callable
from itertools import chain

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passerelle.ids import FIRST_ITEM_ROW
from tests.support.ranks import run_on_ranks
from tests.support.samplers import CONFIGS, all_rows, make, seeded
from training.losses.samplers import (
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
)
from training.losses.samplers.ranks import gather_rows

# Estimating frequencies while training


def observe_steps(
    frequency: StreamingFrequency, probability_I: Tensor, steps: int, generator: torch.Generator
) -> None:
    for _ in range(steps):
        size = int(torch.randint(0, 60, (1,), generator=generator))
        rows = (
            torch.multinomial(probability_I, size, replacement=True, generator=generator)
            if size
            else torch.empty(0, dtype=torch.int64)
        )
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
def test_streaming_equals_a_naive_implementation(steps: list[list[int]], rate: float) -> None:
    frequency = StreamingFrequency(FIRST_ITEM_ROW + 5, rate)
    for targets in steps:
        frequency.observe(torch.tensor(targets, dtype=torch.int64) + FIRST_ITEM_ROW)
    assert frequency.log_probability(all_rows(5)).exp().tolist() == pytest.approx(
        slow_streaming(steps, 5, rate)
    )


def test_streaming_of_few_events_equals_counting() -> None:
    """As long as nothing is forgotten: 3, 1 and 1 of 5, where an item not seen counts as seen once."""
    frequency = StreamingFrequency(FIRST_ITEM_ROW + 3, 0.01)
    assert frequency.log_probability(all_rows(3)).exp().tolist() == pytest.approx([1 / 3] * 3)
    for rows in ([2], [3, 2], [], [2]):
        frequency.observe(torch.tensor(rows, dtype=torch.int64))
    assert frequency.log_probability(all_rows(3)).exp().tolist() == pytest.approx([3 / 5, 1 / 5, 1 / 5])


def test_streaming_converges_and_follows_changes() -> None:
    """On a Zipfian distribution; then on the same in reverse.

    With a rate of 0.02, some 100 appearances have an error of 10 %.
    """
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


def test_frequencies_of_a_large_catalogue_are_computed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hundred targets of a thousand items; draws and probabilities agree in between."""
    frequency, computed = StreamingFrequency(FIRST_ITEM_ROW + 1000, 0.01), []
    compute = frequency.weights
    monkeypatch.setattr(frequency, "weights", lambda: computed.append(1) or compute())
    sampler, targets = StreamingSampler(frequency), torch.arange(FIRST_ITEM_ROW, FIRST_ITEM_ROW + 30)
    for step in range(8):
        assert len(computed) == 1 + max(0, step - 1) // 4 if step else not computed
        before = frequency.cumulative().clone()
        negatives = sampler.draw(1, 20, targets, seeded(step))
        reported_N = negatives.log_probability_SN[0].exp()
        rows_N = negatives.rows_SN[0]
        torch.testing.assert_close(reported_N, ((before[rows_N] - before[rows_N - 1]) / before[-1]))
    assert frequency.log_probability(targets).exp().sum() > 0.05, "they were seen eight times"


def test_streaming_draws_before_it_observes_the_step() -> None:
    """The first step is drawn from the uniform start, whatever its targets are; the second is not."""
    sampler = make("streaming", [0] * 10)
    targets = torch.full((10_000,), 5)
    shares = [
        float((sampler.draw(1, 1000, targets, seeded(3)).rows_SN == 5).double().mean()) for _ in range(2)
    ]
    assert shares[0] == pytest.approx(0.1, abs=0.04)
    assert shares[1] > 0.9


@pytest.mark.parametrize("name", ["streaming", "in batch, streaming"])
def test_a_restored_sampler_continues_identically(name: str) -> None:
    generator = seeded(0)
    steps = [torch.randint(FIRST_ITEM_ROW, FIRST_ITEM_ROW + 9, (20,), generator=generator) for _ in range(12)]

    def draws(sampler: Sampler, steps: list[Tensor]) -> list[Negatives]:
        return [sampler.draw(2, 6, targets, seeded(index)) for index, targets in enumerate(steps)]

    whole, first, second = make(name, [0] * 9), make(name, [0] * 9), make(name, [0] * 9)
    expected = draws(whole, steps[:6]) and draws(whole, steps[6:])
    draws(first, steps[:6])
    fresh = draws(make(name, [0] * 9), steps[6:])
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(draws(second, steps[6:]), expected, strict=True):
        assert torch.equal(ours.rows_SN, theirs.rows_SN)
        assert torch.equal(ours.log_probability_SN, theirs.log_probability_SN)
        assert torch.equal(ours.target_log_probability_M, theirs.target_log_probability_M)
    assert not torch.equal(fresh[0].log_probability_SN, expected[0].log_probability_SN), "the state matters"


def test_checkpoints_of_earlier_versions_are_read() -> None:
    whole, restored = (StreamingFrequency(FIRST_ITEM_ROW + 9, 0.1) for _ in range(2))
    whole.observe(torch.tensor([2, 2, 3, 7]))
    kept = {name: whole.state_dict()[name] for name in ("clock", "last_R", "gap_R", "seen_R")}
    restored.load_state_dict(kept)
    assert torch.equal(restored.log_probability(all_rows(9)), whole.log_probability(all_rows(9)))


def test_checkpoints_hold_only_learnt_buffers() -> None:
    buffers = ("clock", "last_R", "gap_R", "seen_R", "cumulative_R", "num_stale")
    streaming = {f"frequency.{buffer}" for buffer in buffers}
    for name in CONFIGS:
        assert set(make(name, [1, 2]).state_dict()) == (streaming if "streaming" in name else set())


def test_in_batch_observes_the_step_after_the_probabilities() -> None:
    frequency = StreamingFrequency(FIRST_ITEM_ROW + 4, 0.01)
    sampler = InBatchSampler(frequency, gather=True)
    negatives = sampler.draw(1, 9, torch.tensor([2, 2, 2, 3]), seeded(0))
    assert negatives.log_probability_SN[0].exp().tolist() == pytest.approx([0.25 * 0.75] * 4)
    assert frequency.log_probability(torch.tensor([2])).exp().tolist() == pytest.approx([3 / 6])
    sampler.draw(1, 9, torch.tensor([3]), seeded(0))
    assert int(frequency.seen_R[3]) == 2


# Several ranks

SHARES = [[7, 3, 3, 9], [2, 7]], [[], [5]], [[4, 4, 4], [4, 8, 9]], [[], []]
GATHERING: dict[str, Callable[[bool], Sampler]] = {
    "in batch": lambda gather: InBatchSampler(CountedFrequency(torch.arange(10.0)), gather=gather),
    "in batch, streaming": lambda gather: InBatchSampler(StreamingFrequency(10, 0.1), gather=gather),
    "mixed": lambda gather: MixedSampler(10, 0.5, gather=gather),
    "streaming": lambda _: StreamingSampler(StreamingFrequency(10, 0.1)),
    "uniform": lambda _: UniformSampler(10),
    "log_uniform": lambda _: LogUniformSampler(torch.arange(10.0)),
    "popularity": lambda _: PopularitySampler(torch.arange(10.0)),
}
Drawn = dict[str, list[Tensor]]


def draw_steps(rank: int | None, gather: bool = True) -> Drawn:
    """Rows, log-probabilities and state of each sampler after all steps, of one rank or of one process that
    has all targets.
    """
    drawn: Drawn = {"gathered": []}
    for shares in SHARES:
        mine = list(chain(*shares)) if rank is None else shares[rank]
        drawn["gathered"].append(gather_rows(torch.tensor(mine, dtype=torch.int64)))
    for name, factory in GATHERING.items():
        sampler = factory(gather)
        drawn[name] = []
        for step, shares in enumerate(SHARES):
            mine = list(chain(*shares)) if rank is None else shares[rank]
            negatives = sampler.draw(3, 4, torch.tensor(mine, dtype=torch.int64), seeded(step))
            drawn[name] += [negatives.rows_SN, negatives.log_probability_SN]
            drawn[f"{name}, targets"] = [
                *drawn.get(f"{name}, targets", []),
                of_all_ranks(negatives.target_log_probability_M),
            ]
        drawn[name] += list(sampler.state_dict().values())
    return drawn


def of_all_ranks(values_M: Tensor) -> Tensor:
    """The numbers of each rank, one after the other."""
    if not dist.is_initialized():
        return values_M
    parts: list[Tensor | None] = [None, None]
    dist.all_gather_object(parts, values_M)
    return torch.cat([part for part in parts if part is not None])


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save((draw_steps(rank), draw_steps(rank, gather=False)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_draw_the_negatives_of_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ranks")
    run_on_ranks(on_rank, 2, str(folder))
    alone = draw_steps(None)
    for rank in (0, 1):
        together, apart = torch.load(folder / f"{rank}.pt")
        for name, expected in alone.items():
            assert len(together[name]) == len(expected)
            for ours, theirs in zip(
                together[name], expected, strict=True
            ):  # vectors of other lengths round differently
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)
        for shares, rows in zip(SHARES, apart["in batch"][::2], strict=False):
            assert [sorted(row) for row in rows.tolist()][:1] == [sorted(shares[rank])], (
                "its own, when they are not gathered"
            )
        assert all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(apart["streaming"], alone["streaming"], strict=True)
        )
        state = len(StreamingFrequency(3, 0.1).state_dict())
        assert all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(
                apart["in batch, streaming"][-state:], alone["in batch, streaming"][-state:], strict=True
            )
        ), "what is learnt is always learnt from all"
