"""A run of two towers with its ranker, and its bundle."""

import pytest

from passerelle.bundle import Bundle
from passerelle.dataset import Dataset
from tests.support.datasets import small_recipe
from training.export.bundle import export
from training.ranker import train_ranker
from training.runs.fit import train_in_process
from training.runs.open_run import OpenRun, load_run

TOWER = ("items.kind=tower", "objective.kind=causal", "loss.temperature=0.1", "training.max_epochs=6")


@pytest.fixture(scope="module")
def two_tower(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    path = tmp_path_factory.mktemp("two_tower") / "run"
    train_in_process("two_tower", dataset, small_recipe(*TOWER), path)
    opened = load_run(path)
    train_ranker(opened)
    return opened


@pytest.fixture(scope="module")
def towers(two_tower: OpenRun, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(two_tower, tmp_path_factory.mktemp("bundle") / "bundle")
