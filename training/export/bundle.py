"""Turn a run into a bundle: ONNX networks, item vectors, tables, and the reference that the parity gate compares with.

`reference.arrow` holds, for some real users, what this process computed with torch and native LightGBM: `user_id`;
`timestamp_ms`, the time of the request; `query` [D]; `candidate_rows`, `candidate_scores`, the exact retrieval; `top_rows`,
`top_scores`, the ten best by the ranker.

Shape legend: P reference users, D vector width, K candidates, F features, R item rows (special rows included).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import torch

from passerelle.arrays import AnyArray, Float32Array, FloatArray, Int64Array
from passerelle.arrow import write_table
from passerelle.bundle import (
    BUNDLE_FILES,
    CANDIDATE_ENCODER,
    HISTORY_VECTORS,
    ITEM_ENCODING,
    OPTIONAL_FILES,
    QUERY_ENCODER,
    QUERY_ENCODING,
    RANKER,
    USER_CODES,
    USER_NUMBERS,
    Bundle,
    BundleManifest,
    ItemEncoding,
    bundle_id,
    open_bundle,
)
from passerelle.errors import UserError
from passerelle.files import new_directory, refuse_existing, write_text
from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW, USER_ID
from passerelle.manifest import provenance, write_manifest
from passerelle.progress import Progress, silent
from passerelle.splits import EvaluationUsers
from training.config import Recipe
from training.data.evaluation_batches import EvaluationBatches, Histories, request_times_ms
from training.evaluation.evaluate import evaluate, read_evaluation
from training.export.onnx_files import (
    describe,
    export_candidate_encoder,
    export_query_encoder,
    export_ranker,
    query_inputs,
)
from training.model.items import TowerItems
from training.ranker import Candidates, Ranker, load_ranker, rerank, retrieve_candidates
from training.runs.open_run import OpenRun
from training.text import TextEncoder

LIBRARIES = ("torch", "onnx", "onnxruntime", "lightgbm", "numpy", "pyarrow")
REFERENCE_USERS = 64
TOP = 10
MAX_SCORE_DIFFERENCE = 1e-4
MAX_COSINE_DISTANCE = 1e-5
CHECKED_ROWS = 2**14
NETWORKS = (QUERY_ENCODER, RANKER)


@dataclass(frozen=True)
class Reference:
    """What torch and LightGBM answer to some users whose whole history is known."""

    candidates: Candidates
    query_PD: Float32Array
    timestamps_ms_P: Int64Array
    histories: list[tuple[Histories, Int64Array]]
    """What the encoder was given, in batches, each with the positions of its users."""
    top_rows_PK: Int64Array
    top_scores_PK: Float32Array


def export(run: OpenRun, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> Bundle:
    """Write a bundle and check that ONNX Runtime answers as torch and LightGBM do.

    Raises:
        UserError: the run has no ranker, `out` exists, or ONNX Runtime differs by more than 1e-4 or in any top ten.
    """
    refuse_existing(out, overwrite=overwrite)
    ranker = load_ranker(run.path)
    if "popularity" not in read_evaluation(run.path).get(
        "test", {}
    ):  # train-ranker has measured the model already
        evaluate(run, "test", progress=progress)
    with new_directory(out, overwrite=overwrite) as scratch:
        progress("export", 0, 4)
        export_query_encoder(
            run.model.query_encoder(), scratch / f"{QUERY_ENCODER}.onnx", run.manifest.config.model.dim
        )
        if isinstance(run.model.items, TowerItems):
            _write_candidate_encoder(run.model.items, run.manifest.config, scratch)
        progress("export", 1, 4)
        export_ranker(ranker, scratch / f"{RANKER}.onnx", len(run.features.names))
        progress("export", 2, 4)
        _write_tables(run, scratch)
        reference = _reference(run, ranker)
        write_table(scratch / "reference.arrow", _reference_table(run, reference))
        progress("export", 3, 4)
        parity = check_onnx(run, reference, scratch)
        if isinstance(run.model.items, TowerItems):
            parity["max_vector_cosine_distance"] = check_candidate_encoder(run, scratch)
        write_manifest(scratch, _manifest(run, scratch, parity))
        progress("export", 4, 4)
    return open_bundle(out, verify=False)


def _write_candidate_encoder(items: TowerItems, config: Recipe, scratch: Path) -> None:
    """The tower, and how features become its input."""
    export_candidate_encoder(
        items.tower, scratch / f"{CANDIDATE_ENCODER}.onnx", config.model.dim, items.encoding
    )
    name = config.items.text_encoder
    digest = None if name is None else TextEncoder(name).digest
    encoding = ItemEncoding(encoding=items.encoding, text_encoder=name, text_digest=digest)
    write_text(scratch / ITEM_ENCODING, encoding.model_dump_json() + "\n")


def check_candidate_encoder(run: OpenRun, directory: Path) -> float:
    """Largest cosine distance between the vectors of ONNX Runtime and of torch, over all items.

    Raises:
        UserError: it is above 1e-5.
    """
    items = run.model.items
    assert isinstance(items, TowerItems)
    session = onnxruntime.InferenceSession(
        directory / f"{CANDIDATE_ENCODER}.onnx", providers=["CPUExecutionProvider"]
    )
    largest = 0.0
    for start in range(FIRST_ITEM_ROW, len(run.vectors_RD), CHECKED_ROWS):
        rows = slice(start, start + CHECKED_ROWS)
        with torch.no_grad():
            inputs = {name: values.numpy() for name, values in items.inputs(rows).items()}
        (vectors_ND,) = session.run(["vector"], inputs)
        expected_ND = run.vectors_RD[rows].astype(np.float64)
        lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
        largest = max(largest, float((1 - (vectors_ND * expected_ND).sum(axis=1) / lengths_N).max()))
    if not largest <= MAX_COSINE_DISTANCE:  # false for NaN
        raise UserError(
            f"{run.path}: ONNX Runtime's item vectors are not torch's: cosine distance {largest:g}"
        )
    return largest


def _write_tables(run: OpenRun, scratch: Path) -> None:
    dataset = run.dataset
    np.save(scratch / "item_vectors.npy", run.vectors_RD, allow_pickle=False)
    if run.history_vectors_RD is not run.vectors_RD:
        np.save(scratch / HISTORY_VECTORS, run.history_vectors_RD, allow_pickle=False)
    write_table(scratch / "items.arrow", dataset.items)
    popularity = {"count": run.statistics.counts_R, "recent_count": run.statistics.recent_counts_R}
    write_table(scratch / "popularity.arrow", pa.table(popularity))
    offsets_U1 = pa.array(dataset.offsets_U1)
    events = {
        "item_rows": dataset.item_rows_E,
        "timestamps_ms": dataset.timestamps_ms_E,
        "event_types": dataset.event_types_E,
    }
    histories = {
        name: pa.LargeListArray.from_arrays(offsets_U1, pa.array(values_E))
        for name, values_E in events.items()
    }
    write_table(scratch / "histories.arrow", pa.table({USER_ID: dataset.users.column(USER_ID), **histories}))
    features = run.model.query_features
    if features is None:
        return
    write_text(scratch / QUERY_ENCODING, features.encoding.model_dump_json() + "\n")
    if features.encoding.user.columns:
        for name, values in ((USER_CODES, features.user_codes), (USER_NUMBERS, features.user_numbers)):
            np.save(scratch / name, values[:-1].numpy(), allow_pickle=False)


def _reference(run: OpenRun, ranker: Ranker) -> Reference:
    """Users spread over the whole table, each with all events as history and the time of the last one as the time of the request."""
    dataset = run.dataset
    rows_P = np.unique(np.linspace(0, dataset.num_users - 1, REFERENCE_USERS).astype(np.int64))
    start_P, end_P = dataset.offsets_U1[rows_P], dataset.offsets_U1[rows_P + 1]
    users = EvaluationUsers(rows_P, start_P, end_P, end_P, run.split.is_target_E)
    candidates = retrieve_candidates(run, users)
    config = run.manifest.config.model
    batches = EvaluationBatches(dataset, users, max_history=config.max_history, token_budget=4096)
    histories = [(batch.histories, batch.positions_B) for batch in batches]
    query_PD = np.empty((len(users), config.dim), dtype=np.float32)
    for given, positions_B in histories:
        with torch.inference_mode():
            query_PD[positions_B] = run.model.encode_histories(given).numpy()
    top_rows_PK, top_scores_PK = rerank(ranker.predict, candidates)
    return Reference(
        candidates,
        query_PD,
        request_times_ms(dataset, users),
        histories,
        top_rows_PK[:, :TOP],
        top_scores_PK[:, :TOP],
    )


def _reference_table(run: OpenRun, reference: Reference) -> pa.Table:
    candidates = reference.candidates
    return pa.table(
        {
            USER_ID: run.dataset.users.column(USER_ID).take(pa.array(candidates.users.user_rows_Q)),
            "timestamp_ms": reference.timestamps_ms_P,
            "query": list(reference.query_PD),
            "candidate_rows": _lists(candidates.rows_QK.astype(np.int32), candidates.rows_QK),
            "candidate_scores": _lists(candidates.scores_QK, candidates.rows_QK),
            "top_rows": _lists(reference.top_rows_PK.astype(np.int32), reference.top_rows_PK),
            "top_scores": _lists(reference.top_scores_PK, reference.top_rows_PK),
        }
    )


def _lists(values_PK: AnyArray, rows_PK: Int64Array) -> list[AnyArray]:
    """Values of each user without the padding at the end."""
    return [values_K[rows_K != PADDING_ROW] for values_K, rows_K in zip(values_PK, rows_PK, strict=True)]


def check_onnx(run: OpenRun, reference: Reference, directory: Path) -> dict[str, Any]:
    """Largest differences between ONNX Runtime and the reference.

    Raises:
        UserError: scores differ by more than 1e-4, or some user's ten best differ.
    """
    encoder, ranker = (
        onnxruntime.InferenceSession(directory / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in NETWORKS
    )
    candidates = reference.candidates
    query_PD = np.empty_like(reference.query_PD)
    for histories, positions_B in reference.histories:
        inputs = {
            name: values.numpy()
            for name, values in query_inputs(run.model, histories, run.history_vectors_RD).items()
        }
        query_PD[positions_B] = encoder.run(["query"], inputs)[0]
    rows_PK, scores_PK = rerank(
        lambda features_SF: ranker.run(["score"], {"features": features_SF})[0][:, 0], candidates
    )
    top_found_PK = reference.top_rows_PK != PADDING_ROW
    retrieved_PK = np.einsum("pd,pkd->pk", query_PD, run.vectors_RD[candidates.rows_QK])
    same_P = (rows_PK[:, :TOP] == reference.top_rows_PK).all(axis=1)
    parity: dict[str, Any] = {
        "users": len(query_PD),
        "max_query_difference": _largest(query_PD - reference.query_PD),
        "max_retrieval_score_difference": _largest(
            (retrieved_PK - candidates.scores_QK)[candidates.found_QK]
        ),
        "max_score_difference": _largest(
            scores_PK[:, :TOP][top_found_PK] - reference.top_scores_PK[top_found_PK]
        ),
        "identical_top_10": int(same_P.sum()),
    }
    close = all(
        value <= MAX_SCORE_DIFFERENCE for name, value in parity.items() if name.startswith("max_")
    )  # false for NaN
    if not close or not same_P.all():
        raise UserError(f"{run.path}: ONNX Runtime does not answer as torch and LightGBM do: {parity}")
    return parity


def _largest(difference: FloatArray) -> float:
    return float(np.abs(difference).max(initial=0.0))


def _manifest(run: OpenRun, scratch: Path, parity: dict[str, Any]) -> BundleManifest:
    files = (*BUNDLE_FILES, *(name for name in OPTIONAL_FILES if (scratch / name).exists()))
    networks = (*NETWORKS, *([CANDIDATE_ENCODER] if isinstance(run.model.items, TowerItems) else []))
    common = provenance(BundleManifest, scratch, files, LIBRARIES)
    config, dataset = run.manifest.config, run.dataset
    return BundleManifest.model_validate(
        {
            **common,
            "bundle_id": bundle_id(common["files"]),
            "model": run.manifest.recipe,
            "dim": config.model.dim,
            "max_history": config.model.max_history,
            "num_items": dataset.num_items,
            "num_users": dataset.num_users,
            "event_types": dataset.manifest.event_types,
            "target_event_types": config.split.event_types or dataset.manifest.event_types,
            "networks": {name: describe(scratch / f"{name}.onnx") for name in networks},
            "features": run.features.names,
            "item_features": dataset.manifest.item_features,
            "title": dataset.manifest.title,
            "num_candidates": config.ranker.num_candidates,
            "config": config.model_dump(mode="json"),
            "trained_on": run.manifest.trained_on,
            "offline_metrics": read_evaluation(run.path)["test"],
            "parity": {"onnxruntime": parity},
        }
    )
