"""Export a run as a bundle: ONNX networks, tables, vectors, and the reference of the parity gate.

Shape legend: R item rows (special rows included), D vector width, U users, U1 = U + 1, E events.
"""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from passerelle.arrays import Float32Array, Int32Array
from passerelle.bundle import (
    CANDIDATE_ENCODER,
    QUERY_ENCODER,
    RANKER,
    Bundle,
    BundleContents,
    ItemEncoding,
    Network,
    write_bundle,
)
from passerelle.dataset import Dataset
from passerelle.files import refuse_existing
from passerelle.ids import USER_ID
from passerelle.manifest import library_versions
from passerelle.progress import Progress, silent
from training.config import Recipe
from training.evaluation.evaluate import evaluate, read_evaluation
from training.export.onnx_files import (
    describe,
    export_candidate_encoder,
    export_query_encoder,
    export_ranker,
)
from training.export.parity import check_candidate_encoder, check_onnx, expected_answers, reference_users
from training.model.query_features import QueryFeatures
from training.ranker import load_ranker
from training.runs.open_run import OpenRun
from training.text import TextEncoder

LIBRARIES = ("torch", "onnx", "onnxruntime", "lightgbm", "numpy", "pyarrow")
_NUM_STEPS = 4


def export(run: OpenRun, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> Bundle:
    """Write a bundle, after a check that ONNX Runtime answers as torch and LightGBM do.

    Raises:
        UserError: the run has no ranker; `out` exists; or the answers differ by more than `SCORE_TOLERANCE`,
            or in the best items of some user.
    """
    refuse_existing(out, overwrite=overwrite)
    ranker = load_ranker(run.path)
    # `train-ranker` has evaluated the model already.
    if "popularity" not in read_evaluation(run.path).get("test", {}):
        evaluate(run, "test", progress=progress)
    with tempfile.TemporaryDirectory(prefix="passerelle-export-") as scratch:
        directory = Path(scratch)
        progress("export", 0, _NUM_STEPS)
        export_query_encoder(
            run.model.query_encoder(), directory / f"{QUERY_ENCODER}.onnx", run.manifest.config.model.dim
        )
        item_encoding = _export_candidate_encoder(run, directory)
        progress("export", 1, _NUM_STEPS)
        export_ranker(ranker, directory / f"{RANKER}.onnx", len(run.features.names))
        progress("export", 2, _NUM_STEPS)
        expected = expected_answers(run, ranker)
        progress("export", 3, _NUM_STEPS)
        parity = check_onnx(run, expected, directory)
        if item_encoding is not None:
            parity["max_vector_cosine_distance"] = check_candidate_encoder(run, directory)
        features = run.model.query_features
        user_codes_US, user_numbers_UF = _user_features(features)
        bundle = write_bundle(
            out,
            BundleContents(
                networks=_networks(directory),
                vectors_RD=run.vectors_RD,
                items=run.dataset.items,
                counts_R=run.statistics.counts_R,
                recent_counts_R=run.statistics.recent_counts_R,
                histories=_histories(run.dataset),
                reference=reference_users(run, expected),
                description=_description(run, parity),
                libraries=library_versions(LIBRARIES),
                history_vectors_RD=(
                    None if run.history_vectors_RD is run.vectors_RD else run.history_vectors_RD
                ),
                item_encoding=item_encoding,
                query_encoding=None if features is None else features.encoding,
                user_codes_US=user_codes_US,
                user_numbers_UF=user_numbers_UF,
            ),
            overwrite=overwrite,
        )
        progress("export", _NUM_STEPS, _NUM_STEPS)
    return bundle


def _export_candidate_encoder(run: OpenRun, directory: Path) -> ItemEncoding | None:
    """Write the candidate tower and return how features become its input; None of a model without one."""
    items, config = run.model.items.candidate_tower, run.manifest.config
    if items is None:
        return None
    path = directory / f"{CANDIDATE_ENCODER}.onnx"
    export_candidate_encoder(items.tower, path, config.model.dim, items.encoding)
    name = config.items.text_encoder
    digest = None if name is None else TextEncoder(name).digest
    return ItemEncoding(encoding=items.encoding, text_encoder=name, text_digest=digest)


def _user_features(features: QueryFeatures | None) -> tuple[Int32Array | None, Float32Array | None]:
    """Returns codes and numbers of the known users, where the query encoder reads features of users."""
    if features is None or not features.encoding.user.columns:
        return None, None
    return features.user_codes[:-1].numpy(), features.user_numbers[:-1].numpy()


def _networks(directory: Path) -> dict[str, Network]:
    paths = {name: directory / f"{name}.onnx" for name in (QUERY_ENCODER, RANKER, CANDIDATE_ENCODER)}
    return {name: Network(path, describe(path)) for name, path in paths.items() if path.exists()}


def _histories(dataset: Dataset) -> pa.Table:
    offsets_U1 = pa.array(dataset.offsets_U1)
    events = {
        "item_rows": dataset.item_rows_E,
        "timestamps_ms": dataset.timestamps_ms_E,
        "event_types": dataset.event_types_E,
    }
    lists = {
        name: pa.LargeListArray.from_arrays(offsets_U1, pa.array(values_E))
        for name, values_E in events.items()
    }
    return pa.table({USER_ID: dataset.users.column(USER_ID), **lists})


def _description(run: OpenRun, parity: dict[str, Any]) -> dict[str, Any]:
    config: Recipe = run.manifest.config
    dataset = run.dataset.manifest
    return {
        "model": run.manifest.recipe,
        "max_history": config.model.max_history,
        "event_types": dataset.event_types,
        "target_event_types": config.split.event_types or dataset.event_types,
        "features": run.features.names,
        "item_features": dataset.item_features,
        "title": dataset.title,
        "num_candidates": config.ranker.num_candidates,
        "config": config.model_dump(mode="json"),
        "trained_on": run.manifest.trained_on,
        "offline_metrics": read_evaluation(run.path)["test"],
        "parity": {"onnxruntime": parity},
    }
