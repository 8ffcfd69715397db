"""One small dataset, one run that has learnt it, its ranker and its bundle: made once, read by many tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from passerelle.bundle import Bundle
from passerelle.dataset import Dataset
from passerelle.splits import Split, make_split
from tests.support.datasets import planted_dataset, small_recipe
from training.export.bundle import export
from training.ranker import train_ranker
from training.runs.fit import train_in_process
from training.runs.open_run import OpenRun, load_run


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """`Planted()`: 240 users, 120 items, histories of 5 to 20 events."""
    return planted_dataset(tmp_path_factory.mktemp("planted") / "dataset")


@pytest.fixture(scope="session")
def split(dataset: Dataset) -> Split:
    """Leave-one-out."""
    return make_split(dataset, small_recipe().split)


@pytest.fixture(scope="session")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    """A run of full softmax that has learnt the ring; without ranker.

    Do not write into it.
    """
    path = tmp_path_factory.mktemp("run") / "run"
    train_in_process("bert4rec", dataset, small_recipe(), path)
    return load_run(path)


@pytest.fixture(scope="session")
def ranked_run(run: OpenRun, tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    """A copy of `run` with a ranker.

    Do not write into it.
    """
    path = tmp_path_factory.mktemp("ranked") / "run"
    shutil.copytree(run.path, path)
    opened = load_run(path)
    train_ranker(opened)
    return opened


@pytest.fixture(scope="session")
def bundle(ranked_run: OpenRun, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of `ranked_run`."""
    return export(ranked_run, tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def own_run(run: OpenRun, tmp_path: Path) -> Path:
    """A copy of `run` that a test may spoil."""
    return Path(shutil.copytree(run.path, tmp_path / "run"))
