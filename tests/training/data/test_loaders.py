"""Batches are collated ahead by a thread, in the same order."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import pytorch_lightning as pl

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import Split
from tests.support.datasets import small_recipe
from tests.support.waiting import LIMIT_S, eventually, throughout
from training.data.batches import EpochBatches
from training.data.loaders import EpochLoader, prefetched


def threads_at_work() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_prefetching_keeps_items_and_order(depth: int) -> None:
    assert list(prefetched(range(50), depth)) == list(range(50))
    assert list(prefetched([], depth)) == []


def test_prefetching_is_bounded_by_its_depth() -> None:
    made: list[int] = []
    fifth = threading.Event()

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            if number == 4:
                fifth.set()
            yield number

    ahead = prefetched(items(), 3)
    assert next(ahead) == 0
    assert fifth.wait(LIMIT_S), (
        "nobody asks for the fifth item, and it is made: three wait, one is in the thread's hand"
    )
    throughout(lambda: made == [0, 1, 2, 3, 4], 0.3)
    assert list(ahead) == list(range(1, 50))


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("the third is broken")

    ahead = prefetched(items(), 4)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="the third is broken"):
        next(ahead)


def test_stopping_early_ends_the_thread() -> None:
    before = threads_at_work()
    for item in prefetched(iter(int, 1), 2):
        assert item == 0
        break
    eventually(lambda: threads_at_work() == before)


def test_resuming_an_epoch_with_other_batches_is_refused(dataset: Dataset, split: Split) -> None:
    """Steps of two windows are merged for three workers, and their numbers mean others."""
    config = small_recipe("batches.token_budget=26")
    trainer = cast(pl.Trainer, SimpleNamespace(current_epoch=1))
    alone, shared = (
        EpochLoader(EpochBatches(dataset, split, config, epoch=1, world_size=size), trainer)
        for size in (1, 3)
    )
    assert len(shared) < len(alone)
    begun = {"epoch": 1, "steps": 5, "steps_per_epoch": len(alone)}
    alone.load_state_dict(begun)
    assert len(list(alone)) == len(alone) - 5
    with pytest.raises(
        UserError,
        match=f"epoch 2 was begun with {len(alone)} steps and has {len(shared)} with this number of workers",
    ):
        shared.load_state_dict(begun)
    shared.load_state_dict({**begun, "epoch": 0})
    assert len(list(shared)) == len(shared)
