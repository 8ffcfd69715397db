"""Runs that benchmarks keep: continued where they were interrupted, and not made twice."""

import time
from pathlib import Path

import click

from passerelle.dataset import Dataset
from passerelle.manifest import MANIFEST_NAME, open_manifest
from training.config import RunConfig
from training.fit import train_in_process
from training.run import RunManifest


def is_complete(path: Path) -> bool:
    """Whether the run is there, and trained to its end."""
    return (path / MANIFEST_NAME).exists() and open_manifest(path, RunManifest, verify=False).state == "complete"


def train_once(recipe: str, dataset: Dataset, config: RunConfig, path: Path, *, refit_of: Path | None = None) -> None:
    """Train, or go on training, unless that is done."""
    if is_complete(path):
        return
    begun_s = time.perf_counter()
    manifest = train_in_process(recipe, dataset, config, path, resume=(path / MANIFEST_NAME).exists(), refit_of=refit_of)
    click.echo(f"{path}: {manifest.epochs} epochs, {manifest.validation}, {time.perf_counter() - begun_s:.0f} s", err=True)
