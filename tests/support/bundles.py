"""A small but real bundle for tests: hand-made ONNX networks and every file of the contract.

Shape legend: I items, R = I + FIRST_ITEM_ROW, D vector width, U users, L history
length, C candidates, F features.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from passerelle.arrays import AnyArray, Float32Array, Int64Array
from passerelle.bundle import (
    QUERY_ENCODER,
    RANKER,
    TOP_K,
    BundleContents,
    Network,
    NetworkSpec,
    ReferenceUser,
    TensorSpec,
    write_bundle,
)
from passerelle.dataset import FeatureColumn
from passerelle.features import RankingFeatures
from passerelle.ids import FIRST_ITEM_ROW, USER_ID
from passerelle.manifest import library_versions
from passerelle.topk import exact_topk
from tests.support.inference import session
from tests.support.items import item_table

ITEM_FEATURES = (
    FeatureColumn(name="title", kind="text"),
    FeatureColumn(name="genres", kind="multi_categorical"),
    FeatureColumn(name="kind", kind="categorical"),
    FeatureColumn(name="year", kind="numeric"),
)
FEATURE_INPUTS = tuple(
    TensorSpec(name=f"{of}_{kind}", dtype=dtype, shape=("batch", f"{of}_{kind}"))
    for of in ("user", "context")
    for kind, dtype in (("codes", "int64"), ("numbers", "float32"))
)
KINDS = ["film", "book", None]


@dataclass(frozen=True)
class Shape:
    """How large a test bundle is, and what its ids are."""

    num_items: int = 300
    num_users: int = 40
    num_reference_users: int = 20
    dim: int = 64
    max_history: int = 24
    num_candidates: int = 50
    string_ids: bool = False


def _save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]
) -> None:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_query_encoder(path: Path, dim: int, max_history: int, rng: np.random.Generator) -> None:
    """Writes a network: query = (sum of masked vectors weighted by position and by age) @ W.

    Padding on the left changes nothing, order and time do.
    """
    node = helper.make_node
    nodes = [
        node("Shape", ["item_vectors"], ["shape"]),
        node("Gather", ["shape", "one"], ["length"]),
        node("Neg", ["length"], ["start"]),
        node("Slice", ["positions", "start", "end"], ["positions_L"]),
        node("Cast", ["mask"], ["mask_BL"], to=TensorProto.FLOAT),
        node("Sub", ["timestamps_ms", "query_timestamp_ms"], ["minus_age_ms_BL"]),
        node("Cast", ["minus_age_ms_BL"], ["minus_age_BL"], to=TensorProto.FLOAT),
        node("Mul", ["minus_age_BL", "per_ms"], ["minus_shrunk_BL"]),
        node("Sigmoid", ["minus_shrunk_BL"], ["fresh_BL"]),
        node("Mul", ["mask_BL", "positions_L"], ["placed_BL"]),
        node("Mul", ["placed_BL", "fresh_BL"], ["weight_BL"]),
        node("Unsqueeze", ["weight_BL", "last"], ["weight_BL1"]),
        node("Mul", ["item_vectors", "weight_BL1"], ["weighted_BLD"]),
        node("ReduceSum", ["weighted_BLD", "one"], ["sum_BD"], keepdims=0),
        node("MatMul", ["sum_BD", "projection_DD"], ["query"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("item_vectors", TensorProto.FLOAT, ["batch", "length", dim]),
        value("mask", TensorProto.BOOL, ["batch", "length"]),
        value("event_types", TensorProto.INT64, ["batch", "length"]),
        value("timestamps_ms", TensorProto.INT64, ["batch", "length"]),
        value("query_timestamp_ms", TensorProto.INT64, ["batch", 1]),
        *(
            value(f"{of}_{kind}", dtype, ["batch", f"{of}_{kind}"])
            for of in ("user", "context")
            for kind, dtype in (("codes", TensorProto.INT64), ("numbers", TensorProto.FLOAT))
        ),
    ]
    constants = {
        "per_ms": np.array(1e-10, dtype=np.float32),
        "one": np.array([1], dtype=np.int64),
        "end": np.array([2**31], dtype=np.int64),
        "last": np.array([-1], dtype=np.int64),
        "positions": (0.9 ** np.arange(4 * max_history)[::-1]).astype(np.float32),
        "projection_DD": (np.eye(dim) + 0.1 * rng.standard_normal((dim, dim)) / np.sqrt(dim)).astype(
            np.float32
        ),
    }
    _save(path, nodes, inputs, [value("query", TensorProto.FLOAT, ["batch", dim])], constants)


def encoder_inputs(
    vectors_BLD: Float32Array,
    times_ms_BL: Int64Array | None = None,
    timestamp_ms: int = 0,
) -> dict[str, AnyArray]:
    """Inputs of a query encoder without padding; all at the time of the request, if no times are given."""
    shape = vectors_BLD.shape[:2]
    return {
        "item_vectors": vectors_BLD,
        "mask": np.ones(shape, dtype=bool),
        "event_types": np.zeros(shape, dtype=np.int64),
        "timestamps_ms": np.full(shape, timestamp_ms) if times_ms_BL is None else times_ms_BL,
        "query_timestamp_ms": np.full((shape[0], 1), timestamp_ms),
        **{f"{of}_codes": np.zeros((shape[0], 1), dtype=np.int64) for of in ("user", "context")},
        **{f"{of}_numbers": np.zeros((shape[0], 1), dtype=np.float32) for of in ("user", "context")},
    }


def write_ranker(path: Path, num_features: int, rng: np.random.Generator) -> None:
    """score = sigmoid(tanh(features * scale) @ w): bounded, and every feature counts."""
    node = helper.make_node
    nodes = [
        node("Mul", ["features", "scale_F"], ["scaled"]),
        node("Tanh", ["scaled"], ["bounded"]),
        node("MatMul", ["bounded", "weights_F1"], ["logit"]),
        node("Sigmoid", ["logit"], ["score"]),
    ]
    value = helper.make_tensor_value_info
    constants = {
        "scale_F": np.full(num_features, 0.05, dtype=np.float32),
        "weights_F1": rng.standard_normal((num_features, 1)).astype(np.float32),
    }
    inputs = [value("features", TensorProto.FLOAT, ["batch", num_features])]
    _save(path, nodes, inputs, [value("score", TensorProto.FLOAT, ["batch", 1])], constants)


def _items(num_items: int, string_ids: bool, rng: np.random.Generator) -> pa.Table:
    """`item_table` and a kind with gaps."""
    ids = (
        [f"item-é{i}" if i % 2 else f"商品 {i}" for i in range(num_items)]
        if string_ids
        else [10 * i + 7 for i in range(num_items)]
    )
    items = item_table(pa.array(ids, pa.string() if string_ids else pa.int64()), rng)
    kinds = pa.array([KINDS[i % len(KINDS)] for i in range(num_items)], pa.string())
    return items.add_column(items.schema.get_field_index("year"), "kind", kinds)


def _reference(
    shape: Shape,
    networks: Mapping[str, Network],
    features: RankingFeatures,
    vectors_RD: Float32Array,
    histories: pa.Table,
) -> list[ReferenceUser]:
    encoder, ranker = (session(networks[name].path) for name in (QUERY_ENCODER, RANKER))
    users = []
    for user_row, user in enumerate(histories.slice(0, shape.num_reference_users).to_pylist()):
        history_L = np.array(user["item_rows"], dtype=np.int64)
        timestamp_ms = 1_700_000_000_000 + user_row * 7_654_321
        inputs = encoder_inputs(vectors_RD[history_L][None], np.array([user["timestamps_ms"]]), timestamp_ms)
        query_1D = encoder.run(["query"], inputs)[0]
        allowed_1R = np.ones((1, len(vectors_RD)), dtype=bool)
        allowed_1R[0, history_L] = False
        rows_1C, scores_1C = exact_topk(query_1D, vectors_RD, shape.num_candidates, allowed_1R)
        score_C = ranker.run(
            ["score"], {"features": features.compute(rows_1C[0], scores_1C[0], history_L, timestamp_ms)}
        )[0][:, 0]
        best_K = np.argsort(-score_C, kind="stable")[:TOP_K]
        users.append(
            ReferenceUser(
                user_id=user[USER_ID],
                timestamp_ms=timestamp_ms,
                query_D=query_1D[0],
                candidate_rows_C=rows_1C[0].astype(np.int32),
                candidate_scores_C=scores_1C[0],
                top_rows_K=rows_1C[0][best_K].astype(np.int32),
                top_scores_K=score_C[best_K],
            )
        )
    return users


def _networks(
    directory: Path, shape: Shape, num_features: int, rng: np.random.Generator
) -> dict[str, Network]:
    encoder, ranker = (directory / f"{name}.onnx" for name in (QUERY_ENCODER, RANKER))
    write_query_encoder(encoder, shape.dim, shape.max_history, rng)
    write_ranker(ranker, num_features, rng)
    events = (("mask", "bool"), ("event_types", "int64"), ("timestamps_ms", "int64"))
    encoder_spec = NetworkSpec(
        inputs=(
            TensorSpec(name="item_vectors", dtype="float32", shape=("batch", "length", shape.dim)),
            *(TensorSpec(name=name, dtype=dtype, shape=("batch", "length")) for name, dtype in events),
            TensorSpec(name="query_timestamp_ms", dtype="int64", shape=("batch", 1)),
            *FEATURE_INPUTS,
        ),
        outputs=(TensorSpec(name="query", dtype="float32", shape=("batch", shape.dim)),),
    )
    ranker_spec = NetworkSpec(
        inputs=(TensorSpec(name="features", dtype="float32", shape=("batch", num_features)),),
        outputs=(TensorSpec(name="score", dtype="float32", shape=("batch", 1)),),
    )
    return {QUERY_ENCODER: Network(encoder, encoder_spec), RANKER: Network(ranker, ranker_spec)}


def _histories(shape: Shape, rng: np.random.Generator) -> pa.Table:
    lengths_U = rng.integers(1, shape.max_history + 1, size=shape.num_users)
    item_rows = [
        (FIRST_ITEM_ROW + rng.choice(shape.num_items, size=length, replace=False)).tolist()
        for length in lengths_U
    ]
    timestamps_ms = [
        (1_690_000_000_000 + 3_600_000 * np.cumsum(rng.integers(0, 99, size=length))).tolist()
        for length in lengths_U
    ]
    event_types = [[0] * length for length in lengths_U]
    user_ids = [f"usér {row}" if shape.string_ids else 1000 + row for row in range(shape.num_users)]
    return pa.table(
        {
            USER_ID: pa.array(user_ids, pa.string() if shape.string_ids else pa.int64()),
            "item_rows": pa.array(item_rows, pa.list_(pa.int32())),
            "timestamps_ms": pa.array(timestamps_ms, pa.list_(pa.int64())),
            "event_types": pa.array(event_types, pa.list_(pa.uint8())),
        }
    )


def build_bundle(path: Path, shape: Shape = Shape(), seed: int = 0) -> Path:
    """Write a bundle that obeys the contract of `passerelle.bundle`; the same seed makes the same bundle."""
    rng = np.random.default_rng(seed)
    vectors_RD = rng.standard_normal((shape.num_items + FIRST_ITEM_ROW, shape.dim)).astype(
        np.float32
    ) / np.float32(np.sqrt(shape.dim))
    vectors_RD[:FIRST_ITEM_ROW] = 0
    items = _items(shape.num_items, shape.string_ids, rng)
    counts_R = np.concatenate([np.zeros(FIRST_ITEM_ROW), rng.permutation(shape.num_items) + 1.0])
    recent_counts_R = np.floor(counts_R / 3)
    histories = _histories(shape, rng)
    features = RankingFeatures(vectors_RD, counts_R, recent_counts_R, items, ITEM_FEATURES)
    with tempfile.TemporaryDirectory() as scratch:
        networks = _networks(Path(scratch), shape, len(features.names), rng)
        contents = BundleContents(
            networks=networks,
            vectors_RD=vectors_RD,
            items=items,
            counts_R=counts_R,
            recent_counts_R=recent_counts_R,
            histories=histories,
            reference=_reference(shape, networks, features, vectors_RD, histories),
            description={
                "model": "test",
                "max_history": shape.max_history,
                "event_types": ("view",),
                "target_event_types": ("view",),
                "features": features.names,
                "item_features": ITEM_FEATURES,
                "title": "title",
                "num_candidates": shape.num_candidates,
                "config": {},
                "trained_on": "train",
                "offline_metrics": {},
                "parity": {},
            },
            libraries=library_versions(("numpy", "pyarrow", "onnx")),
        )
        write_bundle(path, contents)
    return path
