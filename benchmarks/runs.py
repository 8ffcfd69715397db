"""Runs that benchmarks keep: continued where they were interrupted, and not made twice."""

import time
from pathlib import Path

import click

from passerelle.dataset import Dataset
from passerelle.manifest import MANIFEST_NAME, open_manifest
from training.config import Recipe, load_recipe
from training.runs.fit import train_in_process
from training.runs.run import RunManifest, open_run


def is_complete(path: Path) -> bool:
    """Returns whether a run is there and complete."""
    return (path / MANIFEST_NAME).exists() and open_manifest(
        path, RunManifest, verify=False
    ).state == "complete"


def recipe_with(recipe: str, overrides: tuple[str, ...], threads: int | None = None) -> Recipe:
    """The resolved recipe of a run, perhaps on some CPU threads."""
    return load_recipe(recipe, (*overrides, *((f"training.threads={threads}",) if threads else ())))


def check_settings(path: Path, trained: Recipe, config: Recipe) -> None:
    """Refuse a run that was trained with other settings, but for threads: it would stand in a table under the
    name of these.

    Raises:
        click.ClickException: naming what differs.
    """
    if differing := [name for name in config.differences(trained) if name != "training.threads"]:
        raise click.ClickException(
            f"{path} was trained with a different {', '.join(differing)}: delete it to train it again"
        )


def train_once(
    recipe: str, dataset: Dataset, config: Recipe, path: Path, *, refit_of: Path | None = None
) -> None:
    """Train, or go on training, unless that is done.

    Raises:
        click.ClickException: it was done with other settings.
    """
    if is_complete(path):
        check_settings(path, open_run(path).config, config)
        return
    begun_s = time.perf_counter()
    manifest = train_in_process(
        recipe, dataset, config, path, resume=(path / MANIFEST_NAME).exists(), refit_of=refit_of
    )
    click.echo(
        f"{path}: {manifest.epochs} epochs, {manifest.validation}, {time.perf_counter() - begun_s:.0f} s",
        err=True,
    )
