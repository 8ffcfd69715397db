"""A run on disk: what was trained, on what, how far, and where its weights are.

run/
  manifest.json        configuration, dataset and its fingerprint, state, validation metrics, checksums
  progress.json        epoch and step, rewritten about once a second while training
  history.jsonl        one line an epoch: losses and validation metrics
  checkpoints/         last.ckpt (to resume from), best.ckpt (by validation NDCG@10) and their sparse tables
  tensorboard/         event files
  evaluation.json      written by `passerelle evaluate`: plain numbers
  evaluation_details.json
                       intervals, segments, and how baselines were fitted
  ranker/              written by `passerelle train-ranker`
  split.*              the user's split file, where the recipe has one
"""

import shutil
from pathlib import Path
from typing import ClassVar, Literal

import torch

from passerelle.dataset import Dataset, open_dataset
from passerelle.errors import UserError
from passerelle.files import new_file, unfinished_files
from passerelle.manifest import MANIFEST_NAME, Manifest, open_manifest, provenance, write_manifest
from passerelle.splits import Split, evaluation_users, make_split
from training.config import Recipe
from training.data.batches import EpochBatches
from training.data.windows import training_split
from training.model.factory import build_model, check_features
from training.model.sequence_model import MONITOR, SequenceModel
from training.runs.callbacks import read_checkpoint, read_history
from training.tables.checkpoint import map_table
from training.tables.files import TABLE_KEY, remove_other_tables, table_files

LIBRARIES = ("torch", "pytorch-lightning", "numpy", "pyarrow")
BEST = "checkpoints/best.ckpt"
LAST = "checkpoints/last.ckpt"
RANKER = "ranker"
EVALUATION, DETAILS = "evaluation.json", "evaluation_details.json"


class RunManifest(Manifest):
    """The manifest of a run."""

    FORMAT_VERSION: ClassVar[int] = 2
    KIND: ClassVar[str] = "run"
    MADE_BY: ClassVar[str] = "passerelle train"

    recipe: str
    dataset: str
    """Path of the dataset when training started."""
    dataset_fingerprint: str
    config: Recipe
    state: Literal["training", "complete"]
    epochs: int
    """Epochs trained so far."""
    best_epoch: int | None
    """Epoch of `best.ckpt`, the first is 1."""
    validation: dict[str, float]
    """Validation metrics of `best.ckpt`; none when it was trained on validation events too."""
    refit_of: str | None = None
    """Where the run was whose validation chose the number of epochs, where
    `config.training.include_validation` holds."""

    sealed_best: str | None = None
    """While a complete run is trained on: digest of the `best.ckpt` that its ranker and evaluations are of.
    """

    @property
    def trained_on(self) -> str:
        """Returns the training data in words, for reports."""
        if not self.config.training.include_validation:
            return "train"
        return f"train and validation, {self.epochs} epochs" + (
            f" as chosen by {self.refit_of}" if self.refit_of else ""
        )


def refit_config(manifest: RunManifest) -> Recipe:
    """Returns the configuration to train once more on train and validation, for as many epochs as
    validation chose.

    Raises:
        UserError: the run is itself a refit.
    """
    if manifest.config.training.include_validation:
        raise UserError(
            "--refit: this run was trained on validation events already; give the run that it was made from"
        )
    training = {"include_validation": True, "stop_after_epochs": manifest.best_epoch}
    return manifest.config.model_copy(
        update={"training": manifest.config.training.model_copy(update=training)}
    )


def plan_run(
    path: Path,
    recipe: str,
    dataset: Dataset,
    config: Recipe,
    *,
    resume: bool,
    num_workers: int = 1,
    refit_of: Path | None = None,
) -> RunManifest:
    """Returns the manifest of a new run, or of an existing one to be continued; writes nothing.

    Raises:
        UserError: the run exists and `resume` is false, it was started with another configuration or dataset,
            or the dataset lacks a feature that the recipe names, or is too small to be split among the
            workers.
    """
    split = make_split(dataset, config.split)
    check_features(dataset, config)
    # refuses what is too small
    EpochBatches(dataset, training_split(split, config), config, epoch=0, world_size=num_workers)
    validated = len(evaluation_users(split, "validation"))
    if validated < num_workers and not config.training.include_validation:
        raise UserError(
            f"{dataset.path}: {validated} users to validate on: too few for --workers {num_workers}"
        )
    if (path / MANIFEST_NAME).exists():
        if not resume:
            raise UserError(
                f"{path} already holds a run: pass --resume to continue it, or choose another --out"
            )
        manifest = open_manifest(path, RunManifest, verify=False)
        _check_same(manifest, dataset, config, path)
        sealed = manifest.files[BEST].sha256 if BEST in manifest.files else manifest.sealed_best
        return manifest.updated(config=config.model_dump(), state="training", files={}, sealed_best=sealed)
    if path.exists() and not (
        path.is_dir() and set(path.iterdir()) <= set(unfinished_files(path / MANIFEST_NAME))
    ):
        raise UserError(f"{path} exists and is not a run: choose another --out")
    common = provenance(RunManifest, path, (), LIBRARIES)
    data = {"dataset": str(dataset.path.resolve()), "dataset_fingerprint": dataset.fingerprint()}
    origin = {"recipe": recipe, "config": config, "refit_of": str(refit_of.resolve()) if refit_of else None}
    progress = {"state": "training", "epochs": 0, "best_epoch": None, "validation": {}}
    return RunManifest.model_validate({**common, **data, **origin, **progress})


def start_run(path: Path, manifest: RunManifest) -> None:
    """Creates the run directory, or marks it as in training again."""
    path.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST_NAME, BEST, LAST):
        for unfinished in unfinished_files(path / name):
            unfinished.unlink()
    write_manifest(path, manifest)  # first of all: a folder of anything else is no run, and is not continued
    if given := manifest.config.split.file:
        with new_file(_split_copy(path, given)) as beside:
            shutil.copyfile(given, beside)


def _split_copy(path: Path, given: Path) -> Path:
    return path.resolve() / f"split{given.suffix}"


def with_own_split(path: Path, config: Recipe) -> Recipe:
    """The configuration of a run that is on disk, with the run's copy of its split file instead of the
    user's.
    """
    if config.split.file is None or not (kept := _split_copy(path, config.split.file)).is_file():
        return config
    return config.model_copy(update={"split": config.split.model_copy(update={"file": kept})})


def _check_same(manifest: RunManifest, dataset: Dataset, config: Recipe, path: Path) -> None:
    if manifest.dataset_fingerprint != dataset.fingerprint():
        raise UserError(
            f"{path} was trained on another dataset ({manifest.dataset}): "
            f"it cannot be resumed on {dataset.path}"
        )
    may_change = {f"training.{key}" for key in ("max_epochs", "patience", "threads", "log_every_steps")}
    # the same file, which may be elsewhere
    if config.split.file_sha256 == manifest.config.split.file_sha256 is not None:
        may_change.add("split.file")
    for name, (now, before) in config.differences(manifest.config).items():
        if name not in may_change:
            raise UserError(
                f"{path}: {name} was {before!r} and is now {now!r}: a resumed run keeps its values"
            )


def finish_run(path: Path, manifest: RunManifest) -> RunManifest:
    """Records that training ended: epochs trained, the best one with its metrics, checksums of the
    checkpoints.

    Where nothing was validated, the last weights are the best.
    What was made from earlier weights is removed: a ranker, evaluations.
    """
    if manifest.config.training.include_validation:
        with new_file(path / BEST) as beside:
            shutil.copyfile(path / LAST, beside)
    epochs_trained, best_epoch = (read_checkpoint(path / name)["epoch"] + 1 for name in (LAST, BEST))
    history = read_history(path)
    best = next(line for line in history if line["epoch"] == best_epoch)
    validation = {} if manifest.config.training.include_validation else {MONITOR: best[MONITOR]}
    tables = [
        file
        for name in (BEST, LAST)
        for file in table_files((path / name).parent, read_checkpoint(path / name).get(TABLE_KEY))
    ]
    names = dict.fromkeys([BEST, LAST, *(str(file.relative_to(path)) for file in tables)])
    files = provenance(RunManifest, path, tuple(names), LIBRARIES)["files"]
    if manifest.sealed_best not in (None, files[BEST]["sha256"]):
        shutil.rmtree(path / RANKER, ignore_errors=True)
        for name in (EVALUATION, DETAILS):
            (path / name).unlink(missing_ok=True)
    reached = {"epochs": epochs_trained, "best_epoch": best_epoch, "validation": validation}
    remove_other_tables((path / LAST).parent, {file.parent.name for file in tables})
    manifest = manifest.updated(state="complete", files=files, sealed_best=None, **reached)
    write_manifest(path, manifest)
    return manifest


def open_run(path: Path) -> RunManifest:
    """Reads and verifies a run whose training has ended.

    Raises:
        UserError: not a run; not finished; or a checkpoint is missing or altered.
    """
    manifest = open_manifest(path, RunManifest)
    if manifest.state != "complete":
        raise UserError(f"{path}: training has not ended: continue it with `passerelle train --resume`")
    return manifest.model_copy(update={"config": with_own_split(path, manifest.config)})


def open_run_dataset(manifest: RunManifest, path: Path | None = None) -> Dataset:
    """Opens the dataset a run was trained on, from where it was or from `path`.

    Raises:
        UserError: it is no longer there, or is not the same data.
    """
    dataset = open_dataset(path or Path(manifest.dataset))
    if dataset.fingerprint() != manifest.dataset_fingerprint:
        raise UserError(
            f"{dataset.path} is not the data this run was trained on (prepared again with other settings?)"
        )
    return dataset


def load_model(path: Path, manifest: RunManifest, dataset: Dataset, split: Split) -> SequenceModel:
    """Loads the best checkpoint of a run, in evaluation mode, on the CPU.

    Raises:
        UserError: its weights are not those of this code's model.
    """
    config, checkpoint, checkpoints = manifest.config, read_checkpoint(path / BEST), (path / BEST).parent
    ids = None
    if config.items.table == "sparse":
        ids = map_table(checkpoint, checkpoints)
    model = build_model(
        dataset,
        training_split(split, config),
        config,
        torch.zeros(dataset.num_rows, dtype=torch.float64),
        ids,
    )
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError:
        raise UserError(
            f"{path}: the weights were made by another version of the code ({manifest.git_commit}): "
            "train it again"
        ) from None
    return model.eval()
