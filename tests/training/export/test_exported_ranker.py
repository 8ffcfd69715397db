"""The exported ranker gives exactly what the trees and the score of retrieval give.

Shape legend: S candidates, F features.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from passerelle.arrays import Float32Array
from passerelle.bundle import RANKER, Bundle
from training.export.onnx_files import export_ranker
from training.ranker import load_ranker
from training.runs.open_run import OpenRun


def scores(path: Path, features_SF: Float32Array) -> Float32Array:
    """[S, 1] of the network."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        ["score"], {"features": features_SF}
    )[0]


@pytest.mark.parametrize("rows", [1, 1000])
def test_ranker_equals_lightgbm_on_random_rows(bundle: Bundle, ranked_run: OpenRun, rows: int) -> None:
    """Bit for bit, also beyond what any feature was in training, and exactly on a tree's thresholds."""
    booster, rng = load_ranker(ranked_run.path).booster, np.random.default_rng(1)
    features_SF = rng.normal(
        scale=rng.choice([0.1, 1, 10, 1000], size=(rows, 1)), size=(rows, len(bundle.manifest.features))
    ).astype(np.float32)
    trees = booster.trees_to_dataframe().dropna(subset=["threshold"])
    for position, (feature, threshold) in enumerate(
        zip(trees["split_feature"], trees["threshold"], strict=True)
    ):
        features_SF[position % rows, booster.feature_name().index(feature)] = threshold
    score_S1 = scores(bundle.path / f"{RANKER}.onnx", features_SF)
    assert score_S1.shape == (rows, 1)
    trees_S = np.asarray(booster.predict(features_SF)).astype(np.float32)
    assert (
        score_S1[:, 0].tolist()
        == (trees_S + features_SF[:, bundle.manifest.features.index("retrieval_score")]).tolist()
    )
    if rows > 1:
        assert np.std(trees_S) > 0.01


def test_exported_ranker_scales_the_score_of_retrieval(
    bundle: Bundle, ranked_run: OpenRun, tmp_path: Path
) -> None:
    ranker = replace(load_ranker(ranked_run.path), score_scale=1 / 0.3)
    num_features = len(bundle.manifest.features)
    export_ranker(ranker, tmp_path / "ranker.onnx", num_features)
    features_SF = np.random.default_rng(2).normal(size=(500, num_features)).astype(np.float32)
    assert (
        scores(tmp_path / "ranker.onnx", features_SF)[:, 0].tolist() == ranker.predict(features_SF).tolist()
    )
    assert not np.allclose(ranker.predict(features_SF), load_ranker(ranked_run.path).predict(features_SF))
