"""Bundles: the networks answer as torch and LightGBM do, and the tables are as documented.

Shape legend: P reference users, B batch, L length, D width, K candidates, F features, R item rows.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from passerelle.bundle import BUNDLE_FILES, QUERY_ENCODER, RANKER, Bundle, open_bundle
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from tests.support.bundles import encoder_inputs
from tests.support.datasets import Planted, planted_dataset, small_recipe
from tests.support.encoders import VARIANTS, histories_of, inputs_of, random_items, random_model
from tests.support.histories import untimed
from training.data.statistics import item_statistics
from training.evaluation.evaluate import read_evaluation
from training.export.bundle import export
from training.export.onnx_files import export_query_encoder
from training.export.onnx_session import open_session
from training.export.parity import REFERENCE_USERS
from training.ranker import train_ranker
from training.runs.fit import train_in_process
from training.runs.open_run import OpenRun, load_run


def session(bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
    return open_session(bundle.path / f"{name}.onnx")


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_query_encoder_takes_any_batch_and_length(
    bundle: Bundle, ranked_run: OpenRun, batch: int, length: int
) -> None:
    """From one item to `max_history`, with padding on the left or none."""
    assert bundle.manifest.max_history == 12
    rng = np.random.default_rng(0)
    rows_BL = rng.integers(FIRST_ITEM_ROW, ranked_run.dataset.num_rows, size=(batch, length))
    for row in range(1, batch):
        rows_BL[row, : rng.integers(length)] = 0
    inputs = {**encoder_inputs(np.asarray(bundle.vectors_RD)[rows_BL]), "mask": rows_BL > 0}
    (query_BD,) = session(bundle, QUERY_ENCODER).run(["query"], inputs)
    with torch.inference_mode():
        expected_BD = ranked_run.model.encode_histories(untimed(torch.from_numpy(rows_BL))).numpy()
    assert query_BD.shape == (batch, 32)
    assert np.abs(query_BD - expected_BD).max() < 1e-5


def test_query_encoder_of_an_empty_history_is_finite(bundle: Bundle) -> None:
    inputs = {**encoder_inputs(np.zeros((2, 3, 32), dtype=np.float32)), "mask": np.zeros((2, 3), dtype=bool)}
    assert np.isfinite(session(bundle, QUERY_ENCODER).run(["query"], inputs)[0]).all()


@torch.no_grad()
@pytest.mark.parametrize("variant", [pytest.param("time", marks=pytest.mark.slow), "everything"])
def test_every_part_of_an_encoder_can_be_exported(variant: str, tmp_path: Path) -> None:
    """And answers as torch does, for histories of any length and any times."""
    model = random_model(*VARIANTS[variant])
    export_query_encoder(model.query_encoder(), tmp_path / "encoder.onnx", model.config.model.dim)
    encoder = open_session(tmp_path / "encoder.onnx")
    for lengths in ([1], [9, 2, 1], [5, 5], [8, 1, 1, 1]):
        histories, _ = histories_of(random_items(lengths, seed=lengths[0]))
        inputs = {name: values.numpy() for name, values in inputs_of(model, histories).items()}
        (query_BD,) = encoder.run(["query"], inputs)
        np.testing.assert_allclose(query_BD, model.encode_histories(histories).numpy(), atol=2e-5, rtol=2e-5)


def test_a_separate_output_table_makes_other_vectors_for_histories(dataset: Dataset, tmp_path: Path) -> None:
    """The parity of the export covers both tables: if they were exchanged, no score would be the
    same.
    """
    config = small_recipe("model.output_table=separate", "training.max_epochs=2")
    train_in_process("bert4rec", dataset, config, tmp_path / "run")
    train_ranker(load_run(tmp_path / "run"))
    run = load_run(tmp_path / "run")
    bundle = export(run, tmp_path / "bundle")
    opened = open_bundle(bundle.path)
    assert np.array_equal(
        opened.vectors_RD,
        run.model.items.exact().candidates_UD.detach().numpy() * (np.arange(dataset.num_rows) > 1)[:, None],
    )
    assert np.array_equal(
        opened.history_vectors_RD[FIRST_ITEM_ROW:],
        run.model.items.ids.weight.detach().numpy()[FIRST_ITEM_ROW:],
    )
    assert not np.allclose(opened.vectors_RD, opened.history_vectors_RD, atol=1e-2)
    assert bundle.manifest.parity["onnxruntime"]["identical_top_10"] == REFERENCE_USERS


def test_networks_are_described_as_they_are(bundle: Bundle) -> None:
    networks = {name: network.model_dump() for name, network in bundle.manifest.networks.items()}
    num_features = len(bundle.manifest.features)
    assert networks == {
        QUERY_ENCODER: {
            "inputs": (
                {"name": "item_vectors", "dtype": "float32", "shape": ("batch", "length", 32)},
                {"name": "mask", "dtype": "bool", "shape": ("batch", "length")},
                {"name": "event_types", "dtype": "int64", "shape": ("batch", "length")},
                {"name": "timestamps_ms", "dtype": "int64", "shape": ("batch", "length")},
                {"name": "query_timestamp_ms", "dtype": "int64", "shape": ("batch", 1)},
                {"name": "user_codes", "dtype": "int64", "shape": ("batch", "user_codes")},
                {"name": "user_numbers", "dtype": "float32", "shape": ("batch", "user_numbers")},
                {"name": "context_codes", "dtype": "int64", "shape": ("batch", "context_codes")},
                {"name": "context_numbers", "dtype": "float32", "shape": ("batch", "context_numbers")},
            ),
            "outputs": ({"name": "query", "dtype": "float32", "shape": ("batch", 32)},),
        },
        RANKER: {
            "inputs": ({"name": "features", "dtype": "float32", "shape": ("batch", num_features)},),
            "outputs": ({"name": "score", "dtype": "float32", "shape": ("batch", 1)},),
        },
    }
    for name, network in networks.items():
        read = session(bundle, name)
        assert [(value.name, tuple(value.shape)) for value in read.get_inputs()] == [
            (spec["name"], spec["shape"]) for spec in network["inputs"]
        ]
        assert [value.name for value in read.get_outputs()] == [spec["name"] for spec in network["outputs"]]
        onnx.checker.check_model(onnx.load(bundle.path / f"{name}.onnx"), full_check=True)


def test_towers_are_exported_and_tables_are_data(bundle: Bundle, ranked_run: OpenRun) -> None:
    """The encoder holds dense weights only, none with a row an item; the vectors lie beside it."""
    graph = onnx.load(bundle.path / "query_encoder.onnx").graph
    assert ranked_run.dataset.num_rows not in {size for tensor in graph.initializer for size in tensor.dims}
    assert np.array_equal(bundle.vectors_RD, ranked_run.model.item_vectors().numpy())
    assert bundle.vectors_RD.dtype == np.float32
    assert not bundle.vectors_RD[:FIRST_ITEM_ROW].any()


def test_tables(bundle: Bundle, ranked_run: OpenRun) -> None:
    dataset = ranked_run.dataset
    assert sorted(path.name for path in bundle.path.iterdir()) == sorted([*BUNDLE_FILES, "manifest.json"])
    assert set(bundle.manifest.files) == set(BUNDLE_FILES)
    assert bundle.items.equals(dataset.items)
    statistics = item_statistics(dataset, ranked_run.split, ranked_run.manifest.config.ranker.recent_days)
    assert np.array_equal(bundle.counts_R, statistics.counts_R)
    assert np.array_equal(bundle.recent_counts_R, statistics.recent_counts_R)
    for user_row in (0, 17, dataset.num_users - 1):
        start, end = dataset.offsets_U1[user_row : user_row + 2]
        rows_L, times_ms_L, types_L = bundle.history(user_row)
        assert rows_L.tolist() == dataset.item_rows_E[start:end].tolist()
        assert times_ms_L.tolist() == dataset.timestamps_ms_E[start:end].tolist()
        assert types_L.tolist() == dataset.event_types_E[start:end].tolist()
        assert bundle.user_ids.row(2**40 + 3 * user_row) == user_row
    assert bundle.item_ids.row(2**40) == FIRST_ITEM_ROW


def test_manifest(bundle: Bundle, ranked_run: OpenRun) -> None:
    manifest = bundle.manifest
    assert (manifest.model, manifest.dim, manifest.num_items, manifest.num_users) == (
        "bert4rec",
        32,
        120,
        240,
    )
    assert (manifest.num_candidates, manifest.title) == (40, "title")
    assert manifest.item_features == ranked_run.dataset.manifest.item_features
    assert manifest.config == ranked_run.manifest.config.model_dump(mode="json")
    assert manifest.offline_metrics == read_evaluation(ranked_run.path)["test"]
    assert manifest.trained_on == "train"
    assert set(manifest.offline_metrics) == {"model", "popularity", "ranker"}
    open_bundle(bundle.path, verify=True)


def test_fewer_items_than_candidates(tmp_path: Path) -> None:
    """String ids, a history of two items, fewer items than the ranker's candidates, and users
    who have seen nearly all of them.
    """
    dataset = planted_dataset(tmp_path / "dataset", Planted(num_users=60, num_items=22, string_ids=True))
    train_in_process(
        "bert4rec", dataset, small_recipe("training.max_epochs=3", "model.max_history=2"), tmp_path / "run"
    )
    train_ranker(load_run(tmp_path / "run"))
    bundle = export(load_run(tmp_path / "run"), tmp_path / "bundle")
    assert bundle.manifest.parity["onnxruntime"]["identical_top_10"] == 60
    users = bundle.reference().users()
    assert [user.user_id for user in users] == [f"usér {row}" for row in range(60)]
    assert bundle.item_ids.ids(np.array([FIRST_ITEM_ROW + 21])) == ["商品 21"]
    lengths_U = np.diff(dataset.offsets_U1).tolist()
    assert max(lengths_U) == 20
    for user, length in zip(users, lengths_U, strict=True):
        sizes = [
            len(values)
            for values in (
                user.candidate_rows_C,
                user.candidate_scores_C,
                user.top_rows_K,
                user.top_scores_K,
            )
        ]
        assert sizes == [22 - length, 22 - length, min(10, 22 - length), min(10, 22 - length)]
        assert np.isfinite([*user.candidate_scores_C, *user.top_scores_K]).all()
    assert {"ndcg@10", "ndcg@20"} <= set(bundle.manifest.offline_metrics["popularity"])
    assert "ndcg@50" not in bundle.manifest.offline_metrics["popularity"], "there are 22 items"
    for length in (1, 2):
        inputs = encoder_inputs(np.zeros((1, length, 32), dtype=np.float32))
        assert session(bundle, QUERY_ENCODER).run(["query"], inputs)[0].shape == (1, 32)
