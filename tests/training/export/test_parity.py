"""The reference and its parity: computed independently, measured, and refused where answers differ.

Shape legend: P reference users, D width, K candidates, F features, R item rows.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch

from passerelle.bundle import BUNDLE_FILES, QUERY_ENCODER, RANKER, Bundle
from passerelle.errors import UserError
from passerelle.topk import exact_topk
from tests.support.bundles import encoder_inputs
from tests.support.datasets import small_recipe
from training.export.bundle import export
from training.export.onnx_session import open_session
from training.export.parity import REFERENCE_USERS, check_onnx, expected_answers
from training.ranker import load_ranker, train_ranker
from training.runs.open_run import OpenRun


def session(bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
    return open_session(bundle.path / f"{name}.onnx")


def test_parity_is_measured_and_small(bundle: Bundle) -> None:
    parity = bundle.manifest.parity["onnxruntime"]
    assert parity["users"] == parity["identical_top_10"] == REFERENCE_USERS
    differences = {name: value for name, value in parity.items() if name.startswith("max_")}
    assert set(differences) == {
        "max_query_difference",
        "max_retrieval_score_difference",
        "max_score_difference",
    }
    assert all(0 <= value <= 1e-4 for value in differences.values())
    assert differences["max_query_difference"] > 0, "bit for bit the same: was torch compared with itself?"


def test_reference_equals_an_independent_computation(bundle: Bundle) -> None:
    """From the bundle's own files: ONNX Runtime, exact search, the feature
    definitions, and the ranker's ten best.
    """
    reference = bundle.reference()
    assert len(reference) == REFERENCE_USERS
    kinds = {
        field.name: field.type.value_type if pa.types.is_list(field.type) else field.type
        for field in reference.table.schema
    }
    assert kinds == {
        "user_id": pa.int64(),
        "timestamp_ms": pa.int64(),
        "query": pa.float32(),
        "candidate_rows": pa.int32(),
        "candidate_scores": pa.float32(),
        "top_rows": pa.int32(),
        "top_scores": pa.float32(),
    }
    encoder, ranker = session(bundle, QUERY_ENCODER), session(bundle, RANKER)
    features = bundle.ranking_features()
    assert features.names == bundle.manifest.features
    users = reference.users()
    assert [bundle.user_ids.row(user.user_id) for user in (users[0], users[-1])] == [0, 239]
    for user in users:
        seen = bundle.history(bundle.user_ids.row(user.user_id)).item_rows_L
        history_L = seen[-bundle.manifest.max_history :]
        inputs = encoder_inputs(bundle.vectors_RD[history_L][None])
        (query_1D,) = encoder.run(["query"], inputs)
        assert np.abs(query_1D[0] - user.query_D).max() < 1e-5
        allowed_1R = np.ones((1, len(bundle.vectors_RD)), dtype=bool)
        allowed_1R[0, seen] = False
        rows_1K, scores_1K = exact_topk(
            query_1D, bundle.vectors_RD, bundle.manifest.num_candidates, allowed_1R
        )
        assert rows_1K[0].tolist() == user.candidate_rows_C.tolist()
        assert np.abs(scores_1K[0] - user.candidate_scores_C).max() < 1e-4
        features_KF = features.compute(rows_1K[0], scores_1K[0], history_L, user.timestamp_ms)
        score_K = ranker.run(["score"], {"features": features_KF})[0][:, 0]
        best_K = np.argsort(-score_K, kind="stable")[:10]
        assert rows_1K[0][best_K].tolist() == user.top_rows_K.tolist()
        assert np.abs(score_K[best_K] - user.top_scores_K).max() < 1e-4


def test_time_of_the_reference_is_that_of_the_last_event(bundle: Bundle, ranked_run: OpenRun) -> None:
    user_rows = [bundle.user_ids.row(user_id) for user_id in bundle.reference().user_ids()]
    last_E = ranked_run.dataset.offsets_U1[1:][user_rows] - 1
    assert [user.timestamp_ms for user in bundle.reference().users()] == ranked_run.dataset.timestamps_ms_E[
        last_E
    ].tolist()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_without_a_ranker_nothing_is_written(run: OpenRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no ranker: run `passerelle train-ranker .*` first"):
        export(run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_kept_unless_asked(
    bundle: Bundle, ranked_run: OpenRun, tmp_path: Path
) -> None:
    """And the same run makes the same bundle again, byte for byte but for the manifest's date."""
    out = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    (out / "note.txt").write_text("mine")
    (out / "items.arrow").write_bytes(b"spoilt")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="already exists: choose another --out, or pass --overwrite"):
        export(ranked_run, out)
    assert contents(tmp_path) == before
    again = export(ranked_run, out, overwrite=True)
    assert again.manifest.bundle_id == bundle.manifest.bundle_id
    after, first = contents(tmp_path), contents(bundle.path)
    assert set(after) == {f"bundle/{name}" for name in first}
    assert all(after[f"bundle/{name}"] == first[name] for name in BUNDLE_FILES)


def test_a_network_with_other_answers_is_refused(
    ranked_run: OpenRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the exported mask vector is not the model's: the gate must see it, and nothing be left."""
    network = ranked_run.model.query_encoder()
    with torch.no_grad():
        network.mask_vector_D[0] += 0.1
    monkeypatch.setattr(ranked_run.model, "query_encoder", lambda: network)
    with pytest.raises(UserError, match="ONNX Runtime does not answer as torch and LightGBM do"):
        export(ranked_run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_another_ranker_is_noticed(ranked_run: OpenRun, run: OpenRun, bundle: Bundle, tmp_path: Path) -> None:
    """The bundle's networks against the reference of the same model with a ranker of fewer trees."""
    other = replace(run, path=Path(shutil.copytree(run.path, tmp_path / "other")))
    train_ranker(
        replace(
            other, manifest=other.manifest.updated(config=small_recipe("ranker.num_trees=2").model_dump())
        )
    )
    check_onnx(ranked_run, expected_answers(ranked_run, load_ranker(ranked_run.path)), bundle.path)
    with pytest.raises(UserError, match="ONNX Runtime does not answer as torch and LightGBM do"):
        check_onnx(other, expected_answers(other, load_ranker(other.path)), bundle.path)
