"""Small runs on Ray, their curves, and the processes that train them."""

import json
from pathlib import Path
from typing import Any

import psutil

from passerelle.dataset import Dataset
from ray_cluster.training import RayOptions, train_on_ray
from tests.support.datasets import small_recipe
from training.runs.run import RunManifest


def history(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def curve(path: Path, name: str = "train_loss_epoch") -> list[float]:
    return [line[name] for line in history(path)]


def on_ray(
    dataset: Dataset, path: Path, *overrides: str, num_workers: int = 1, resume: bool = False
) -> RunManifest:
    options = RayOptions(num_workers=num_workers)
    return train_on_ray("bert4rec", dataset, small_recipe(*overrides), path, options, resume=resume)


def worker_processes() -> list[psutil.Process]:
    """Ray Train's worker processes among our descendants."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in child.name() or "RayTrainWorker" in " ".join(child.cmdline())
    ]
