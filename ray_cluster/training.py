"""Train a run on a Ray cluster: the function `training.runs.fit.fit` in every Ray Train worker.

The run directory must be on storage that every worker sees (a local disk for local Ray, a
shared file system for a cluster).
Nothing is reported with `ray.train.report`, because each call waits for the next poll of Ray Train's
controller, two seconds apart: metrics and checkpoints are in the run.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer
from ray.train.torch import TorchTrainer

from passerelle.dataset import Dataset, open_dataset
from passerelle.errors import UserError
from ray_cluster.local_ray import local_ray, own_signals, users_mistake
from ray_cluster.resources import runtime_env
from training.config import Recipe
from training.runs.fit import Workers, fit
from training.runs.run import LAST, RunManifest, finish_run, plan_run, start_run, with_own_split

MAX_WORKER_FAILURES = 2


def _worker(job: dict[str, Any]) -> None:
    """Train in one Ray Train worker.

    After a failure Ray calls it again, and it continues from the last checkpoint.
    """
    run_path = Path(job["run_path"])
    context = ray.train.get_context()
    dataset = open_dataset(Path(job["dataset_path"]), verify=False)
    if dataset.fingerprint() != job["dataset_fingerprint"]:
        raise UserError(
            f"{dataset.path}: the dataset of this worker's machine is another one than that of the command: "
            "copy it there, or keep it where every machine sees it"
        )
    fit(
        dataset,
        Recipe.model_validate(job["config"]),
        run_path,
        resume=job["resume"] or (run_path / LAST).exists(),
        workers=Workers(
            count=context.get_world_size(),
            local_world_size=context.get_local_world_size(),
            strategy=RayDDPStrategy(),
            plugins=[RayLightningEnvironment()],
            prepare=prepare_trainer,
        ),
    )


@dataclass(frozen=True)
class RayOptions:
    """Where a run is trained."""

    num_workers: int = 1
    """Data-parallel workers; every step's batch is shared among them."""
    address: str | None = None
    """Address of a running cluster (`ray://...` or `auto`).

    Without it, Ray is started on this machine and stopped at the end.
    """


def train_on_ray(
    recipe: str,
    dataset: Dataset,
    config: Recipe,
    run_path: Path,
    options: RayOptions = RayOptions(),
    *,
    resume: bool = False,
    refit_of: Path | None = None,
) -> RunManifest:
    """Train a whole run on Ray Train, one process for each worker.

    Workers have a GPU each where the cluster has any and torch is built for them.

    Args:
        refit_of: the run whose validation chose the number of epochs, for the manifest.

    Raises:
        UserError: the run may not be created or continued; the cluster has too few
            CPUs; or a worker failed for good.
    """
    num_workers = options.num_workers
    manifest = plan_run(
        run_path, recipe, dataset, config, resume=resume, num_workers=num_workers, refit_of=refit_of
    )
    with tempfile.TemporaryDirectory(prefix="passerelle-ray-") as results, _cluster(options.address):
        # The machine of this process may be one without a GPU.
        use_gpu = torch.backends.cuda.is_built() and "GPU" in ray.cluster_resources()
        _check_capacity(num_workers, use_gpu=use_gpu)
        start_run(run_path, manifest)
        job = {
            "dataset_path": str(dataset.path.resolve()),
            "dataset_fingerprint": dataset.fingerprint(),
            "run_path": str(run_path.resolve()),
            "config": with_own_split(run_path, config).model_dump(mode="json"),
            "resume": resume,
        }
        trainer = TorchTrainer(
            _worker,
            train_loop_config=job,
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=run_path.name,
                storage_path=results,
                failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            ),
        )
        try:
            with own_signals():
                trainer.fit()
        except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
            raise UserError(
                f"{run_path}: a training worker failed {MAX_WORKER_FAILURES + 1} times: "
                f"{users_mistake(str(error), type(error).__name__)}"
            ) from error
    return finish_run(run_path, manifest)


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect to Ray for the length of the block: one on this machine, or a running cluster.

    This checkout's packages are shipped to a running cluster.
    """
    if address is None:
        with local_ray():
            yield
        return
    with own_signals():
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env=runtime_env(),
        )
    try:
        yield
    finally:
        ray.shutdown()


def _check_capacity(num_workers: int, *, use_gpu: bool) -> None:
    kind = "GPU" if use_gpu else "CPU"
    available = int(ray.cluster_resources().get(kind, 0))
    if num_workers > available:
        raise UserError(
            f"--workers {num_workers}: this Ray cluster has {available} {kind}s, and a worker needs one"
        )
