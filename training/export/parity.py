"""Answers of torch and LightGBM for some users, and the differences of ONNX Runtime's from them.

Shape legend: P reference users, D vector width, C candidates, K the best of them, N items of a chunk,
F features, S candidates that are scored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from passerelle.arrays import Float32Array, FloatArray, Int64Array
from passerelle.bundle import (
    CANDIDATE_ENCODER,
    QUERY_ENCODER,
    RANKER,
    SCORE_TOLERANCE,
    TOP_K,
    ReferenceUser,
)
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW, PADDING_ROW, USER_ID
from passerelle.splits import EvaluationUsers
from training.data.evaluation_batches import EvaluationBatches, Histories, request_times_ms
from training.export.onnx_files import query_inputs
from training.export.onnx_session import open_session
from training.ranker import Candidates, Ranker, rerank, retrieve_candidates
from training.runs.open_run import OpenRun

REFERENCE_USERS = 64
MAX_COSINE_DISTANCE = 1e-5
_CHUNK_ROWS = 2**14


@dataclass(frozen=True)
class ExpectedAnswers:
    """Answers of torch and native LightGBM for some users, with the inputs that they were computed from."""

    candidates: Candidates
    query_PD: Float32Array
    timestamps_ms_P: Int64Array
    histories: list[tuple[Histories, Int64Array]]
    """Batches of the query encoder's input, each with the positions of its users."""
    top_rows_PK: Int64Array
    top_scores_PK: Float32Array


def expected_answers(run: OpenRun, ranker: Ranker) -> ExpectedAnswers:
    """Compute the answers for users spread over the whole table.

    The history of a user is all of the user's events, and the time of the request is that of the last one.
    """
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
    top_rows_PC, top_scores_PC = rerank(ranker.predict, candidates)
    return ExpectedAnswers(
        candidates,
        query_PD,
        request_times_ms(dataset, users),
        histories,
        top_rows_PC[:, :TOP_K],
        top_scores_PC[:, :TOP_K],
    )


def reference_users(run: OpenRun, expected: ExpectedAnswers) -> list[ReferenceUser]:
    """Returns the answers as the bundle's reference has them, without padding."""
    candidates = expected.candidates
    user_ids = run.dataset.users.column(USER_ID).take(pa.array(candidates.users.user_rows_Q)).to_pylist()
    return [
        ReferenceUser(
            user_id=user_id,
            timestamp_ms=int(expected.timestamps_ms_P[position]),
            query_D=expected.query_PD[position],
            candidate_rows_C=candidates.rows_QK[position][found_C].astype(np.int32),
            candidate_scores_C=candidates.scores_QK[position][found_C],
            top_rows_K=expected.top_rows_PK[position][found_C[:TOP_K]].astype(np.int32),
            top_scores_K=expected.top_scores_PK[position][found_C[:TOP_K]],
        )
        for position, (user_id, found_C) in enumerate(zip(user_ids, candidates.found_QK, strict=True))
    ]


def check_onnx(run: OpenRun, expected: ExpectedAnswers, directory: Path) -> dict[str, Any]:
    """Returns the largest differences between ONNX Runtime and torch with LightGBM.

    Args:
        directory: folder of the query encoder and the ranker.

    Raises:
        UserError: scores differ by more than `SCORE_TOLERANCE`, or some user's `TOP_K` best items differ.
    """
    encoder, ranker = (open_session(directory / f"{name}.onnx") for name in (QUERY_ENCODER, RANKER))
    candidates = expected.candidates
    query_PD = np.empty_like(expected.query_PD)
    for histories, positions_B in expected.histories:
        inputs = {
            name: values.numpy()
            for name, values in query_inputs(run.model, histories, run.history_vectors_RD).items()
        }
        query_PD[positions_B] = encoder.run(["query"], inputs)[0]
    rows_PC, scores_PC = rerank(
        lambda features_SF: ranker.run(["score"], {"features": features_SF})[0][:, 0], candidates
    )
    top_found_PK = expected.top_rows_PK != PADDING_ROW
    retrieved_PC = np.einsum("pd,pcd->pc", query_PD, run.vectors_RD[candidates.rows_QK])
    same_P = (rows_PC[:, :TOP_K] == expected.top_rows_PK).all(axis=1)
    differences = {
        "max_query_difference": _max_absolute(query_PD - expected.query_PD),
        "max_retrieval_score_difference": _max_absolute(
            (retrieved_PC - candidates.scores_QK)[candidates.found_QK]
        ),
        "max_score_difference": _max_absolute(
            scores_PC[:, :TOP_K][top_found_PK] - expected.top_scores_PK[top_found_PK]
        ),
    }
    parity = {"users": len(query_PD), **differences, "identical_top_10": int(same_P.sum())}
    # The comparison is false for NaN.
    if not all(value <= SCORE_TOLERANCE for value in differences.values()) or not same_P.all():
        raise UserError(f"{run.path}: ONNX Runtime does not answer as torch and LightGBM do: {parity}")
    return parity


def check_candidate_encoder(run: OpenRun, directory: Path) -> float:
    """Returns the largest cosine distance between the item vectors of ONNX Runtime and those of torch.

    Args:
        directory: folder of the candidate encoder.

    Raises:
        UserError: it is above `MAX_COSINE_DISTANCE`.
    """
    items = run.model.items.candidate_tower
    assert items is not None
    session = open_session(directory / f"{CANDIDATE_ENCODER}.onnx")
    largest = 0.0
    for start in range(FIRST_ITEM_ROW, len(run.vectors_RD), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        with torch.no_grad():
            inputs = {name: values.numpy() for name, values in items.inputs(rows).items()}
        (vectors_ND,) = session.run(["vector"], inputs)
        expected_ND = run.vectors_RD[rows].astype(np.float64)
        lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
        largest = max(largest, float((1 - (vectors_ND * expected_ND).sum(axis=1) / lengths_N).max()))
    # The comparison is false for NaN.
    if not largest <= MAX_COSINE_DISTANCE:
        raise UserError(
            f"{run.path}: ONNX Runtime's item vectors are not torch's: cosine distance {largest:g}"
        )
    return largest


def _max_absolute(difference: FloatArray) -> float:
    return float(np.abs(difference).max(initial=0.0))
