"""The benchmarks of training measure what they say, on something tiny."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import harness, peers, quality, recipe_ablation, softmax_memory
from benchmarks.harness import apart, peak_bytes
from benchmarks.peers import newest_events
from benchmarks.runs import train_once
from benchmarks.synthetic import synthetic_dataset
from benchmarks.training_throughput import Variant, flop_counter, measure
from passerelle.dataset import open_dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import SplitConfig, make_split
from tests.support.datasets import SMALL_RECIPE, dataset_of, planted_dataset, small_recipe
from training.config import load_recipe
from training.data.windows import training_events, with_validation
from training.evaluation.evaluate import evaluate
from training.runs.callbacks import read_history
from training.runs.open_run import load_run

RUNS_OF_QUALITY = ("seed0", "seed0-refit", "seed1")


def test_a_complete_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    """As where a recipe has changed since; but for threads, which change nothing."""
    dataset = planted_dataset(tmp_path / "dataset")
    train_once("bert4rec", dataset, small_recipe("training.max_epochs=1"), tmp_path / "run")
    train_once(
        "bert4rec", dataset, small_recipe("training.max_epochs=1", "training.threads=2"), tmp_path / "run"
    )
    with pytest.raises(
        click.ClickException,
        match=r"was trained with a different model\.dropout, training\.max_epochs: delete it",
    ):
        train_once(
            "bert4rec", dataset, small_recipe("training.max_epochs=2", "model.dropout=0.3"), tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("gpu", "name"),
    [(None, "theme_cpu2_2026-01-02.json"), ("NVIDIA H200", "theme_nvidia-h200_2026-01-02.json")],
)
def test_results_are_named_by_machine(
    gpu: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    started = {**harness.environment(), "gpu": gpu, "cores": 2, "date": "2026-01-02T03:04:05"}
    assert harness.write_result("theme", started, {"value": 1}) == tmp_path / name
    assert json.loads((tmp_path / name).read_text())["value"] == 1


def test_the_newest_events_are_those_of_each_user(tmp_path: Path) -> None:
    histories = [[(2, 1), (3, 2), (4, 3)], [(5, 1)], [(6, 1), (2, 2)]]
    dataset = dataset_of(tmp_path / "all", histories, num_items=5, weights=[1, 2, 3, 4, 5, 6])
    newest = newest_events(dataset, 2, tmp_path / "newest")
    assert newest.offsets_U1.tolist() == [0, 2, 3, 5]
    assert newest.item_rows_E.tolist() == [3, 4, 5, 6, 2]
    assert newest.timestamps_ms_E.tolist() == [2, 3, 1, 1, 2]
    assert newest.weights_E.tolist() == [2, 3, 4, 5, 6]
    assert newest.num_items == 5 and newest.num_users == 3


def test_the_peer_gets_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last of each user's newest events, as many as fit."""
    histories = [[(2, 1), (3, 2), (4, 3)], [(5, 1), (4, 5), (2, 6)], [(6, 1), (2, 2), (3, 3), (4, 4)]]
    monkeypatch.setattr(
        peers, "quality_dataset", lambda _: dataset_of(tmp_path / "all", histories, num_items=5)
    )
    path, file, num_events = peers._prepared(peers.Case("any", "full", 2), tmp_path)
    with np.load(file) as events:
        theirs = list(
            zip(
                events["user"].tolist(), events["item"].tolist(), events["timestamp_ms"].tolist(), strict=True
            )
        )
    assert theirs == [(0, 2, 1), (0, 3, 2), (1, 5, 1), (1, 4, 5), (2, 2, 2), (2, 3, 3)]
    dataset = open_dataset(path)
    positions_E, _ = training_events(with_validation(make_split(dataset, SplitConfig())))
    assert dataset.item_rows_E[positions_E].tolist() == [item for _, item, _ in theirs]
    assert num_events == len(positions_E)


def test_quality_is_averaged_over_seeds_with_refits_separate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = planted_dataset(tmp_path / "dataset")
    case = quality.Case("planted", "bert4rec", (*SMALL_RECIPE, "training.max_epochs=2"), published=0.5)
    monkeypatch.setattr(quality, "CASES", {"small": case})
    monkeypatch.setattr(quality, "FOLDER", tmp_path)
    monkeypatch.setattr(quality, "quality_dataset", lambda _: dataset)
    monkeypatch.setattr(quality, "RECTOOLS_NDCG", 0.0)
    for seed in (0, 1):
        quality._train(case, tmp_path / "small" / f"seed{seed}", seed, None, refit=seed == 0)
    found = quality._collected("small")
    ndcg = {
        name: evaluate(load_run(tmp_path / "small" / name), "test", quality.KS)["model"]["ndcg@10"]
        for name in RUNS_OF_QUALITY
    }
    assert [run["test"]["ndcg@10"] for run in found["train"]["runs"]] == [ndcg["seed0"], ndcg["seed1"]]
    assert found["train"]["mean"]["ndcg@10"] == pytest.approx((ndcg["seed0"] + ndcg["seed1"]) / 2)
    assert found["train"]["standard_deviation"]["ndcg@10"] == pytest.approx(
        abs(ndcg["seed0"] - ndcg["seed1"]) / 2**0.5
    )
    assert [run["test"]["ndcg@10"] for run in found["refit"]["runs"]] == [ndcg["seed0-refit"]]
    assert "standard_deviation" not in found["refit"] and found["published_ndcg@10"] == 0.5
    epochs_s = [line["seconds"] for line in read_history(tmp_path / "small" / "seed0")]
    first = found["train"]["runs"][0]
    assert (first["seconds"], first["seconds_until_rectools_ndcg"]) == (
        pytest.approx(sum(epochs_s)),
        epochs_s[0],
    )
    assert [run["seed"] for run in found["train"]["runs"]] == [0, 1] and first["threads"] == 1


def test_synthetic_histories(tmp_path: Path) -> None:
    dataset = synthetic_dataset(tmp_path / "data", num_events=50_000, length=40, num_items=1000)
    lengths_U = np.diff(dataset.offsets_U1)
    assert 50_000 <= len(dataset.item_rows_E) <= 50_040
    assert lengths_U.min() == 5 and lengths_U.max() == 41 and 15 < np.median(lengths_U) < 25
    counts_I = np.bincount(dataset.item_rows_E, minlength=1002)[FIRST_ITEM_ROW:]
    assert counts_I[0] / counts_I[9] == pytest.approx(np.log(2) / np.log(11 / 10), rel=0.2), "Zipf's law"


@pytest.mark.parametrize(("recipe", "loss"), [("bert4rec", "sampled"), ("sasrec", "full")])
def test_throughput_of_a_tiny_run(recipe: str, loss: str) -> None:
    threads = torch.get_num_threads()
    variant = Variant(
        recipe, loss, length=20, dim=16, num_items=200, precision="fp32", compiled=False, token_budget=400
    )
    found = measure(variant, warmup=1, steps=3, profiled=True)
    torch.set_num_threads(threads)
    assert 0 <= found["padding_share"] < 0.5
    assert found["step_ms"] > 0 and found["tokens_per_s"] > found["samples_per_s"] > 0
    assert found["targets_per_s"] <= found["tokens_per_s"]
    assert found["share_of_matmul_peak"] == pytest.approx(
        found["gflops_per_s"] / found["matmul_gflops_per_s"]
    )
    # of the matrices alone: blocks of 12 D^2 weights each, six operations a weight, and twice that is more
    # than all of it
    of_matrices = 6 * load_recipe(recipe).model.num_blocks * 12 * 16**2
    assert (0.7 if recipe == "bert4rec" else 1.0) * of_matrices < found["flops_per_token"] < 2 * of_matrices
    assert (
        sum(row["share"] for row in found["operations"]) <= 1
        and found["operations"][0]["share"] >= found["operations"][1]["share"]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler has many of its own
def test_the_profile_of_a_compiled_run_is_of_compiled_steps() -> None:
    threads = torch.get_num_threads()
    variant = Variant(
        "sasrec", "full", length=20, dim=16, num_items=200, precision="fp32", compiled=True, token_budget=400
    )
    operations = {
        row["operation"] for row in measure(variant, warmup=2, steps=2, profiled=True)["operations"]
    }
    torch.set_num_threads(threads)
    assert any("ompiled" in operation for operation in operations), operations


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_counted_where_it_is_fused(masked: bool) -> None:
    """Two products of 2 B H L L K operations forward; backward five, as it makes the probabilities anew."""
    heads = [torch.randn(3, 2, 40, 16, requires_grad=True) for _ in range(3)]
    with flop_counter() as counter:
        F.scaled_dot_product_attention(
            *heads, attn_mask=torch.zeros(3, 2, 40, 40) if masked else None
        ).sum().backward()
    assert counter.get_total_flops() == (2 + 5) * 2 * 3 * 2 * 40 * 40 * 16


def test_memory_of_the_softmax_is_that_of_its_own_process() -> None:
    chunked, whole = (apart(softmax_memory.measure, kind, 20_000, 8_192) for kind in ("chunked", "whole"))
    assert chunked["loss_per_position"] == pytest.approx(whole["loss_per_position"], rel=1e-5)
    assert whole["peak_mib_above_table"] > 20_000 * 8_192 * 4 / 2**20 > 3 * chunked["peak_mib_above_table"]


def peak() -> dict[str, int]:
    return {"bytes": peak_bytes()}


def test_a_child_does_not_count_what_its_parent_holds() -> None:
    held = np.ones(2**27)
    assert apart(peak)["bytes"] < held.nbytes < peak_bytes()


def test_a_child_that_fails_says_why() -> None:
    assert "unknown_kind" in apart(_failing, "unknown_kind")["error"]


def _failing(kind: str) -> dict[str, float]:
    raise ValueError(kind)


@pytest.mark.parametrize("recipe", recipe_ablation.VARIANTS)
def test_every_variant_of_the_ablation_is_a_recipe_of_its_own(recipe: str) -> None:
    variants = recipe_ablation.VARIANTS[recipe]
    configs = {
        load_recipe(recipe, (*recipe_ablation.COMMON, *overrides)).model_dump_json()
        for overrides in variants.values()
    }
    assert len(configs) == len(variants), "two variants are the same, or one is what the recipe has already"
