"""Ray Train runs the same training as one process: alone, shared by two workers, and when a worker dies."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import evaluation_users, make_split
from ray_cluster.local_ray import local_ray
from ray_cluster.training import train_on_ray
from tests.support.datasets import SMALL_RECIPE, planted_dataset, small_recipe
from tests.support.processes import run, running
from tests.support.ranks import run_on_ranks
from tests.support.ray_runs import curve, history, on_ray, worker_processes
from tests.support.runs import train, with_split_file
from tests.support.waiting import eventually
from training.data.evaluation_batches import EvaluationBatches
from training.evaluation.evaluate import evaluate
from training.model.epoch_loss import mean_over_ranks
from training.model.factory import build_training_model
from training.model.sequence_model import MONITOR
from training.runs.callbacks import read_checkpoint
from training.runs.fit import train_in_process
from training.runs.open_run import load_run
from training.runs.run import BEST, LAST, open_run, open_run_dataset, refit_config


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for all runs of this file."""
    with local_ray() as started:
        yield
    assert ray.is_initialized() != started


def test_one_worker_is_the_same_as_no_ray(dataset: Dataset, tmp_path: Path) -> None:
    """Also where a run is begun with Ray and ended without."""
    alone = train_in_process("bert4rec", dataset, small_recipe("training.max_epochs=4"), tmp_path / "alone")
    on_ray(dataset, tmp_path / "ray", "training.max_epochs=3")
    ours = train_in_process(
        "bert4rec", dataset, small_recipe("training.max_epochs=4"), tmp_path / "ray", resume=True
    )
    assert [line["epoch"] for line in history(tmp_path / "ray")] == [1, 2, 3, 4]
    for name in ("train_loss_epoch", MONITOR):
        assert curve(tmp_path / "ray", name) == pytest.approx(curve(tmp_path / "alone", name), abs=1e-6)
    assert (ours.epochs, ours.best_epoch, ours.state) == (alone.epochs, alone.best_epoch, "complete")
    weights, expected = (
        torch.load(tmp_path / name / LAST, weights_only=True)["state_dict"] for name in ("ray", "alone")
    )
    assert set(weights) == set(expected)
    assert all(torch.allclose(weights[name], expected[name], atol=1e-5) for name in expected)


def test_two_workers_train_as_one(dataset: Dataset, tmp_path: Path) -> None:
    """The same steps, each shared by two: the same loss, and after eight epochs nearly the same ranking."""
    settings = "training.max_epochs=8"
    alone = train_in_process("bert4rec", dataset, small_recipe(settings), tmp_path / "alone")
    shared = on_ray(dataset, tmp_path / "shared", settings, num_workers=2)
    assert [line["step"] for line in history(tmp_path / "shared")] == [
        line["step"] for line in history(tmp_path / "alone")
    ]
    assert curve(tmp_path / "shared")[:5] == pytest.approx(curve(tmp_path / "alone")[:5], abs=1e-4)
    assert curve(tmp_path / "shared") == pytest.approx(curve(tmp_path / "alone"), abs=2e-2)
    assert shared.validation[MONITOR] == pytest.approx(alone.validation[MONITOR], rel=0.03)
    assert shared.validation[MONITOR] > 0.2


SPARSE = ("items.table=sparse", "loss.kind=sampled", "loss.num_negatives=32")
TOWERS = ("items.kind=tower", "objective.kind=causal", "loss.temperature=0.1")


def test_a_sharded_table_trains_as_one(dataset: Dataset, tmp_path: Path) -> None:
    """The same steps, rows sharded; what two have begun, one goes on with."""
    settings = (*SPARSE, *TOWERS)
    alone = train(dataset, tmp_path / "alone", *settings, "training.max_epochs=7")
    shared = on_ray(dataset, tmp_path / "shared", *settings, "training.max_epochs=5", num_workers=2)
    assert curve(tmp_path / "shared") == pytest.approx(curve(tmp_path / "alone")[:5], abs=1e-4)
    assert {name for name in shared.files if name.startswith("checkpoints/tables/")}, (
        "the digests leave out the table"
    )
    on_one = evaluate(load_run(tmp_path / "shared"), "validation", ks=(10,))["model"]
    assert on_one["ndcg@10"] == pytest.approx(shared.validation[MONITOR], abs=1e-6)
    gone_on = train(dataset, tmp_path / "shared", *settings, "training.max_epochs=7", resume=True)
    assert curve(tmp_path / "shared") == pytest.approx(curve(tmp_path / "alone"), abs=1e-3)
    assert gone_on.validation[MONITOR] == pytest.approx(alone.validation[MONITOR], rel=0.03)
    weights, expected = (
        torch.load(tmp_path / name / LAST, weights_only=True)["state_dict"] for name in ("shared", "alone")
    )
    assert set(weights) == set(expected) and not any(name.startswith("items.ids") for name in weights)
    assert len(list((tmp_path / "shared" / "checkpoints" / "tables").iterdir())) <= 2, (
        "one for the best, one for the last"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [(), TOWERS], ids=["vectors", "towers"])
def test_a_sharded_table_is_resumed_and_validated_by_any_number_of_workers(
    dataset: Dataset, tmp_path: Path, kind: tuple[str, ...]
) -> None:
    """What one has begun, two go on with; four say the same of it."""
    settings = (*SPARSE, *kind)
    train(dataset, tmp_path / "shared", *settings, "training.max_epochs=5")
    shutil.copytree(tmp_path / "shared", tmp_path / "alone")
    shared = on_ray(
        dataset, tmp_path / "shared", *settings, "training.max_epochs=7", num_workers=2, resume=True
    )
    train(dataset, tmp_path / "alone", *settings, "training.max_epochs=7", resume=True)
    assert curve(tmp_path / "shared") == pytest.approx(curve(tmp_path / "alone"), abs=1e-3)
    assert validated(tmp_path, 4) == pytest.approx(shared.validation[MONITOR], abs=1e-6)


def validated(folder: Path, world_size: int) -> float:
    """NDCG@10 of the run `shared`, as so many ranks find it."""
    run_on_ranks(validate_on_rank, world_size, world_size, str(folder))
    return float((folder / f"validated{world_size}").read_text())


def validate_on_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store{world_size}", rank=rank, world_size=world_size
    )
    manifest = open_run(Path(folder) / "shared")
    dataset, config, checkpoint = (
        open_run_dataset(manifest),
        manifest.config,
        read_checkpoint(Path(folder) / "shared" / BEST),
    )
    split = make_split(dataset, config.split)
    model = build_training_model(dataset, split, config, total_steps=1, num_shards=world_size)
    model.table_checkpoint.directory = Path(folder) / "shared" / "checkpoints"
    assert not model.items.ids.holds_all_rows
    model.items.ids.materialize(world_size, torch.device("cpu"))
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    users = evaluation_users(split, "validation")
    with torch.no_grad():
        for batch in EvaluationBatches(
            dataset, users, max_history=12, token_budget=512, rank=rank, world_size=world_size
        ):
            model.validation_step(batch, 0)
    total, count = mean_over_ranks(model._validation_sums, model.device)
    if rank == 0:
        (Path(folder) / f"validated{world_size}").write_text(str(float(total / count)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_refit_on_ray_has_the_split_of_its_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a relative path, while workers are elsewhere; the user's file is gone."""
    file = tmp_path / "given.csv"
    config = with_split_file(dataset, file, "1,1", "training.max_epochs=1")
    train_in_process("bert4rec", dataset, config, tmp_path / "run")
    file.unlink()
    monkeypatch.chdir(tmp_path)
    chosen = open_run(Path("run"))
    again = train_on_ray("bert4rec", dataset, refit_config(chosen), Path("refit"), refit_of=Path("run"))
    assert (again.state, again.config.split.file_sha256) == ("complete", chosen.config.split.file_sha256)


def test_too_many_workers_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--workers 99: this Ray cluster has \d+ CPUs, and a worker needs one"
    ):
        on_ray(dataset, tmp_path / "run", num_workers=99)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused_before_any_work(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="exists and is not a run"):
        on_ray(dataset, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_a_dataset_that_vanishes_is_told_in_one_line(tmp_path: Path) -> None:
    dataset = planted_dataset(tmp_path / "dataset")
    shutil.rmtree(tmp_path / "dataset")
    with pytest.raises(
        UserError, match=rf"a training worker failed 3 times: {tmp_path}/dataset: no such dataset"
    ) as error:
        on_ray(dataset, tmp_path / "run", "training.max_epochs=1")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_workers_are_replaced_and_training_goes_on(
    dataset: Dataset, tmp_path: Path, num_workers: int
) -> None:
    """Killed after their second epoch, in whatever step they are: the history is that of an
    undisturbed run, batch by batch.
    """
    settings = ("training.max_epochs=40", "training.patience=40", "training.checkpoint_every_steps=1")
    killed: list[int] = []

    def second_epoch_ended() -> bool:
        lines = (tmp_path / "run" / "history.jsonl").exists() and history(tmp_path / "run")
        return bool(lines) and lines[-1]["epoch"] >= 2

    def kill_after_two_epochs() -> None:
        eventually(second_epoch_ended, timeout_s=240)
        for process in worker_processes():
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)

    killer = threading.Thread(target=kill_after_two_epochs, daemon=True)
    killer.start()
    manifest = on_ray(dataset, tmp_path / "run", *settings, num_workers=num_workers)
    assert len(killed) >= num_workers, "no worker was killed: the test proves nothing"
    train_in_process("bert4rec", dataset, small_recipe(*settings), tmp_path / "undisturbed")
    assert manifest.epochs == 40
    for name in ("epoch", "step"):
        assert curve(tmp_path / "run", name) == curve(tmp_path / "undisturbed", name)
    ours, undisturbed = (curve(tmp_path / name) for name in ("run", "undisturbed"))
    assert ours[:5] == pytest.approx(undisturbed[:5], abs=1e-6 if num_workers == 1 else 1e-4)
    assert ours == pytest.approx(
        undisturbed, abs=1e-6 if num_workers == 1 else 2e-2
    )  # two sum in another order, and small differences grow


@pytest.mark.slow
def test_a_job_of_two_workers_that_is_killed_whole_is_resumed(dataset: Dataset, tmp_path: Path) -> None:
    """Launcher, Ray and workers at once, in the middle of an epoch; the batches are those of an undisturbed
    run.
    """
    settings = ("training.max_epochs=12", "training.patience=12", "training.checkpoint_every_steps=1")
    sets = [part for setting in (*SMALL_RECIPE, *settings) for part in ("--set", setting)]
    (tmp_path / "plain.toml").write_text("")
    command = (
        "train",
        str(tmp_path / "plain.toml"),
        "--dataset",
        str(dataset.path),
        "--out",
        str(tmp_path / "run"),
        "--workers",
        "2",
        *sets,
    )
    with running(*command) as job:
        written = tmp_path / "run" / "history.jsonl"
        eventually(
            lambda: (
                job.process.poll() is not None or (written.exists() and len(history(tmp_path / "run")) >= 2)
            ),
            timeout_s=240,
        )
        assert job.process.poll() is None
        job.kill_all()
    assert 2 <= len(history(tmp_path / "run")) < 12, "it had ended: the test would pass in vain"
    status, _, errors = run(*command, "--resume")
    assert status == 0, errors
    train_in_process("bert4rec", dataset, small_recipe(*settings), tmp_path / "undisturbed")
    for name in ("epoch", "step"):
        assert curve(tmp_path / "run", name) == curve(tmp_path / "undisturbed", name)
    assert curve(tmp_path / "run")[:5] == pytest.approx(curve(tmp_path / "undisturbed")[:5], abs=1e-4)
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "undisturbed"), abs=2e-2)
