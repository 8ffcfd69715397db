"""Real runs on a small dataset: what they learn, repeat, write, and when they stop."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import SplitConfig, make_split
from tests.support.datasets import Planted, dataset_of, planted_dataset, small_recipe
from tests.support.histories import untimed
from tests.support.runs import NOT_LEARNING, SAMPLED, assert_same_state, checkpoint, history, train
from training.config import OptimizerConfig
from training.data.batches import EpochBatches
from training.evaluation.evaluate import evaluate
from training.losses.samplers import UniformSampler
from training.model.optimizer import learning_rate_scale
from training.model.sequence_model import MONITOR, SequenceModel
from training.runs.callbacks import PROGRESS
from training.runs.fit import train_in_process
from training.runs.open_run import OpenRun, load_run
from training.runs.run import BEST, LAST

# What a run learns


def beats_popularity(run: OpenRun, times: float) -> bool:
    results = evaluate(run, "test", (10,))
    assert results["popularity"]["ndcg@10"] > 0.03
    return results["model"]["ndcg@10"] > times * results["popularity"]["ndcg@10"]


def test_full_softmax_learns_the_order(own_run: Path) -> None:
    assert beats_popularity(load_run(own_run), times=4)


@pytest.mark.parametrize("sampler", ["uniform", "popularity"])
def test_sampled_softmax_learns_the_order(dataset: Dataset, tmp_path: Path, sampler: str) -> None:
    train(dataset, tmp_path / "run", *SAMPLED, f"loss.sampler={sampler}")
    assert beats_popularity(load_run(tmp_path / "run"), times=2)


def test_num_draws_sets_the_draws_of_a_step(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = UniformSampler.draw
    monkeypatch.setattr(UniformSampler, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    train(dataset, tmp_path / "run", *SAMPLED, "loss.num_draws=3", "training.max_epochs=1")
    assert drawn and {tuple(negatives.rows_SN.shape) for negatives in drawn} == {(3, 64)}


def test_training_with_string_ids_and_a_global_split(tmp_path: Path) -> None:
    dataset = planted_dataset(tmp_path / "dataset", Planted(string_ids=True))
    rule = ("split.rule=global_time", "split.validation_fraction=0.1", "split.test_fraction=0.1")
    train(dataset, tmp_path / "run", *rule, "training.max_epochs=15")
    assert beats_popularity(load_run(tmp_path / "run"), times=1.5)


def test_bfloat16_learns_as_well(dataset: Dataset, tmp_path: Path) -> None:
    precise, rounded = tmp_path / "float32", tmp_path / "bfloat16"
    for kind in ("full", "sampled"):
        train(dataset, precise / kind, f"loss.kind={kind}", "training.max_epochs=1")
        train(
            dataset,
            rounded / kind,
            f"loss.kind={kind}",
            "training.max_epochs=1",
            "training.precision=bf16-mixed",
        )
        losses = [[line["train_loss_epoch"] for line in history(path / kind)] for path in (precise, rounded)]
        assert losses[0] == pytest.approx(losses[1], rel=0.01)
        assert losses[0] != losses[1]
        assert all(
            weight.dtype == torch.float32 for weight in checkpoint(rounded / kind)["state_dict"].values()
        )


# What a run repeats


def test_the_same_seed_gives_the_same_run(dataset: Dataset, tmp_path: Path) -> None:
    """Weights, batches, masks, negatives and dropout."""
    for name, seed, noise in (("first", 3, 1), ("again", 3, 2), ("other", 4, 1)):
        torch.manual_seed(noise)  # global generators must not matter
        np.random.seed(noise)  # noqa: NPY002
        train(dataset, tmp_path / name, *SAMPLED, f"training.seed={seed}", "training.max_epochs=2")
    assert history(tmp_path / "first") == history(tmp_path / "again")
    assert_same_state(checkpoint(tmp_path / "first"), checkpoint(tmp_path / "again"))
    assert history(tmp_path / "first") != history(tmp_path / "other")


# When a run stops


def test_early_stopping(dataset: Dataset, tmp_path: Path) -> None:
    """A model that does not learn is best at its first epoch: three validations later it stops; more patience
    goes on from there.
    """
    manifest = train(dataset, tmp_path / "run", NOT_LEARNING, "training.max_epochs=50", "training.patience=3")
    assert (manifest.epochs, manifest.best_epoch) == (4, 1)
    assert [line["epoch"] for line in history(tmp_path / "run")] == [1, 2, 3, 4]
    assert [checkpoint(tmp_path / "run", name)["epoch"] for name in (BEST, LAST)] == [0, 3]
    manifest = train(
        dataset, tmp_path / "run", NOT_LEARNING, "training.max_epochs=50", "training.patience=5", resume=True
    )
    assert (manifest.epochs, manifest.best_epoch) == (6, 1)


def test_evaluation_uses_the_best_weights(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "run"
    manifest = train(
        dataset,
        path,
        "optimizer.learning_rate=0.2",
        "optimizer.warmup_steps=0",
        "training.max_epochs=9",
        "training.patience=9",
    )
    scores = [line[MONITOR] for line in history(path)]
    assert manifest.best_epoch == 1 + int(np.argmax(scores))
    assert manifest.best_epoch < manifest.epochs == 9, (
        "the last epoch is the best: the test would pass in vain"
    )
    assert evaluate(load_run(path), "validation", (10,))["model"]["ndcg@10"] == pytest.approx(
        max(scores), abs=1e-6
    )


def test_epochs_without_validation_record_no_metric(dataset: Dataset, tmp_path: Path) -> None:
    manifest = train(dataset, tmp_path / "run", "training.max_epochs=5", "training.validate_every_epochs=2")
    assert [line["epoch"] for line in history(tmp_path / "run") if MONITOR in line] == [2, 4]
    assert (manifest.epochs, manifest.best_epoch) == (5, 4)


def test_resuming_with_fewer_epochs_trains_nothing(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", "training.max_epochs=3")
    before = checkpoint(tmp_path / "run")
    assert train(dataset, tmp_path / "run", "training.max_epochs=2", resume=True).epochs == 3
    assert_same_state(checkpoint(tmp_path / "run"), before)


def test_resuming_a_run_stopped_early_trains_nothing(dataset: Dataset, tmp_path: Path) -> None:
    """As where it was killed before it could say that it was complete; with more patience it goes on."""
    settings = (NOT_LEARNING, "training.max_epochs=50")
    assert train(dataset, tmp_path / "run", *settings, "training.patience=2").epochs == 3
    before = checkpoint(tmp_path / "run")
    assert train(dataset, tmp_path / "run", *settings, "training.patience=2", resume=True).epochs == 3
    assert_same_state(checkpoint(tmp_path / "run"), before)
    assert train(dataset, tmp_path / "run", *settings, "training.patience=4", resume=True).epochs == 5


# What a run writes


def test_files_of_a_run(run: OpenRun) -> None:
    assert {path.name for path in run.path.iterdir()} == {
        "manifest.json",
        PROGRESS,
        "history.jsonl",
        "checkpoints",
        "tensorboard",
    }
    lines = history(run.path)
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    assert [line["step"] for line in lines] == [lines[0]["step"] * epoch for epoch in range(1, 21)]
    assert all(set(line) == {"epoch", "step", "train_loss_epoch", MONITOR} for line in lines)
    assert lines[0]["train_loss_epoch"] == pytest.approx(math.log(run.dataset.num_items), rel=0.05)
    assert lines[-1]["train_loss_epoch"] < 0.8 * lines[0]["train_loss_epoch"]
    progress = json.loads((run.path / PROGRESS).read_text())
    assert progress["max_epochs"] == 20
    assert 1 <= progress["step"] <= progress["steps_per_epoch"] == lines[0]["step"]
    manifest = run.manifest
    assert (manifest.state, manifest.epochs, manifest.recipe, manifest.config) == (
        "complete",
        20,
        "bert4rec",
        small_recipe(),
    )
    assert manifest.dataset_fingerprint == run.dataset.fingerprint()
    assert set(manifest.files) == {BEST, LAST}
    events = (run.path / "tensorboard").glob("events.out.tfevents.*")
    assert b"train_loss" in b"".join(path.read_bytes() for path in events)


def test_the_recorded_loss_is_the_full_softmax(dataset: Dataset, tmp_path: Path) -> None:
    """The mean over steps of each step's weighted mean; here of a model that stays as it was made, one window
    at a time.
    """
    config = small_recipe(NOT_LEARNING, "model.dropout=0", "training.max_epochs=1")
    train_in_process("bert4rec", dataset, config, tmp_path / "run")
    model, losses = (
        SequenceModel(config, torch.zeros(dataset.num_rows, dtype=torch.float64), total_steps=1),
        [],
    )
    for batch in EpochBatches(dataset, make_split(dataset, config.split), config, epoch=0):
        with torch.no_grad():
            states = [
                model.encode(batch.items_T[start:end][None])[0]
                for start, end in pairwise(batch.offsets_B1.tolist())
            ]
            logits_MR = (
                torch.cat(states)[batch.target_positions_M] @ model.items.ids.weight[FIRST_ITEM_ROW:].T
            )
        losses_M = F.cross_entropy(logits_MR, batch.target_rows_M - FIRST_ITEM_ROW, reduction="none")
        losses.append(float((losses_M * batch.weights_M).sum() / batch.weights_M.sum()))
    assert history(tmp_path / "run")[0]["train_loss_epoch"] == pytest.approx(np.mean(losses), abs=1e-5)


# How a step is made


def test_learning_rate_schedules_by_hand() -> None:
    def shares(decay_fraction: float) -> list[float]:
        config = OptimizerConfig(warmup_steps=3, decay_fraction=decay_fraction)
        return [learning_rate_scale(config, step, 20) for step in (0, 1, 2, 3, 10, 15, 20, 30)]

    assert shares(0.0) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert shares(0.5) == pytest.approx([0.25, 0.5, 0.75, 1, 1, (1 + 0.05) / 2, 0.05, 0.05])


def test_item_tables_have_no_weight_decay() -> None:
    model = SequenceModel(
        small_recipe("optimizer.weight_decay=0.5"), torch.zeros(10, dtype=torch.float64), total_steps=1
    )
    groups = model.configure_optimizers()["optimizer"].param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    by_name = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(by_name) == len(decay) == len(list(model.parameters()))
    assert (
        by_name["items.ids.weight"]
        == by_name["encoder.output_norm.weight"]
        == by_name["encoder.head.bias"]
        == 0
    )
    assert by_name["encoder.head.weight"] == by_name["encoder.blocks.1.feedforward.layer.inner.weight"] == 0.5


def test_event_weights_change_what_is_learnt(tmp_path: Path) -> None:
    """After item 2 come 3 and 4 as often; where 4 weighs nine times as much, it is ranked first; and 3
    likewise.
    """
    histories = [[(2, 0), (3 + user % 2, 1), (5 + user % 4, 2), (9, 3)] for user in range(40)]
    overrides = (
        "objective.last_only_probability=1",
        "training.max_epochs=15",
        "batches.token_budget=40",
        "training.patience=50",
    )
    for favourite in (3, 4):
        weights = [
            weight
            for user in range(40)
            for weight in (1.0, 9.0 if 3 + user % 2 == favourite else 1.0, 1.0, 1.0)
        ]
        dataset = dataset_of(tmp_path / f"dataset{favourite}", histories, num_items=8, weights=weights)
        train(dataset, tmp_path / f"run{favourite}", *overrides)
        model = load_run(tmp_path / f"run{favourite}").model
        scores_R = model.item_vectors() @ model.encode_histories(untimed(torch.tensor([[2]])))[0]
        assert int(scores_R[2:].argmax()) + 2 == favourite


def test_training_uses_the_split_of_the_recipe(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", "split.rule=global_time", "training.max_epochs=1")
    opened = load_run(tmp_path / "run")
    assert opened.manifest.config.split == SplitConfig(rule="global_time")
    assert len(opened.users("validation")) < dataset.num_users


@pytest.mark.parametrize("every", [1, 1000])
def test_a_diverging_run_is_refused_and_keeps_no_nan(dataset: Dataset, tmp_path: Path, every: int) -> None:
    with pytest.raises(
        UserError, match=r"epoch 1: the training loss is (nan|inf): try optimizer\.learning_rate below 1e\+30"
    ):
        train(
            dataset,
            tmp_path / "run",
            "optimizer.learning_rate=1e30",
            f"training.checkpoint_every_steps={every}",
        )
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values()), path
