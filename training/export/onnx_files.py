"""Write and describe ONNX files; the only file that imports onnx."""

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from passerelle.arrays import AnyArray, Float32Array
from passerelle.bundle import NetworkSpec, TensorSpec
from passerelle.encoding import FeatureEncoding
from passerelle.features import RETRIEVAL_SCORE
from passerelle.ids import PADDING_ROW
from training.data.evaluation_batches import Histories
from training.model.query_encoder import HistoryInputs, QueryEncoder
from training.model.sequence_model import SequenceModel
from training.model.towers import CandidateTower, QueryFeatureBatch

if TYPE_CHECKING:
    import lightgbm

    from training.ranker import Ranker

OPSET = 18
ML_OPSET = 3
IR_VERSION = 8
MAX_COLUMNS = 2**16
_ML = "ai.onnx.ml"
LIGHTGBM_ZERO = 1.0000000180025095e-35
"""LightGBM's smallest number, 1e-35 in float32.

It never splits between this number and its negative, and reads smaller ones as zero.
"""


def export_query_encoder(network: QueryEncoder, path: Path, dim: int) -> None:
    """Write a network from the fields of `HistoryInputs` and `QueryFeatureBatch`
    to `query` float32 [batch, D].

    Every network has inputs for times and features, whether it reads them or not, and features may have more
    columns than it reads: so that versions with and without them can replace each other.
    """
    max_history = network.encoder.max_length - (0 if network.encoder.causal else 1)
    example = {
        "item_vectors": torch.zeros(2, max_history, dim),
        "mask": torch.ones(2, max_history, dtype=torch.bool),
        "event_types": torch.zeros(2, max_history, dtype=torch.int64),
        "timestamps_ms": torch.zeros(2, max_history, dtype=torch.int64),
        "query_timestamp_ms": torch.zeros(2, 1, dtype=torch.int64),
        **{
            name: torch.zeros(2, width + 1, dtype=torch.int64 if name.endswith("codes") else torch.float32)
            for name, width in network.widths.items()
        },
    }
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=1, max=max_history)
    dynamic: dict[str, dict[int, Any]] = {name: {0: batch, 1: length} for name in example}
    dynamic["query_timestamp_ms"] = {0: batch}
    for name, width in network.widths.items():
        dynamic[name] = {0: batch, 1: torch.export.Dim(name, min=width, max=MAX_COLUMNS)}
    _export(network, query_arguments(example), list(example), "query", query_arguments(dynamic), path)


def query_arguments(values: Mapping[str, Any]) -> tuple[HistoryInputs, QueryFeatureBatch]:
    """Returns the arguments of `QueryEncoder.forward`, given by name."""
    history = (values[name] for name in HistoryInputs._fields)
    features = (values[name] for name in QueryFeatureBatch._fields)
    return HistoryInputs(*history), QueryFeatureBatch(*features)


@torch.no_grad()
def query_inputs(
    model: SequenceModel, histories: Histories, vectors_RD: Float32Array
) -> dict[str, torch.Tensor]:
    """Returns the inputs of the exported query encoder for some histories, by name.

    Args:
        vectors_RD: vectors of items in histories.
    """
    items_BL = histories.items_BL
    if model.query_features is None:
        features = QueryFeatureBatch(
            *(torch.zeros(len(items_BL), 1, dtype=dtype) for dtype in (torch.int64, torch.float32) * 2)
        )
    else:
        features = model.query_features(histories.user_rows_B, histories.request_events_B)
    return {
        "item_vectors": torch.from_numpy(vectors_RD[items_BL.numpy()]),
        "mask": items_BL != PADDING_ROW,
        "event_types": histories.event_types_BL,
        "timestamps_ms": histories.timestamps_ms_BL,
        "query_timestamp_ms": histories.request_timestamp_ms_B1,
        **{
            name: values.long() if name.endswith("codes") else values
            for name, values in features._asdict().items()
        },
    }


def export_candidate_encoder(tower: CandidateTower, path: Path, dim: int, encoding: FeatureEncoding) -> None:
    """Write a candidate tower.

    Its inputs are `id_vector` float32 [batch, D], `codes` int64 [batch, S] and `numbers` float32 [batch, F].
    Its output is `vector` float32 [batch, D].
    """
    example = {
        "id_vector": torch.zeros(2, dim),
        "codes": torch.zeros(2, encoding.num_slots, dtype=torch.int64),
        "numbers": torch.zeros(2, encoding.num_numbers),
    }
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example)
    _export(tower.eval(), tuple(example.values()), list(example), "vector", shapes, path)


def _export(
    network: torch.nn.Module,
    arguments: tuple[Any, ...],
    input_names: list[str],
    output: str,
    dynamic_shapes: tuple[Any, ...],
    path: Path,
) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns about its own internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            arguments,
            input_names=input_names,
            output_names=[output],
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)
    onnx.checker.check_model(path)


def export_ranker(ranker: "Ranker", path: Path, num_features: int) -> None:
    """Write a ranker from `features` float32 [batch, F] to `score` float32 [batch, 1].

    The score is the scaled score of retrieval plus the raw score of the trees.
    Thresholds and leaves stay float64 and the sum over trees is rounded once, so the file gives exactly what
    `Ranker.predict` gives.
    With float32 thresholds, as converters write them, a feature equal to one may take the other branch.
    """
    constants: dict[str, AnyArray] = {
        "retrieval_score_position": np.array([RETRIEVAL_SCORE], dtype=np.int64),
        "score_scale": np.array(ranker.score_scale, dtype=np.float32),
    }
    make_node = onnx.helper.make_node
    nodes = [
        make_node("Cast", ["features"], ["features_double"], to=onnx.TensorProto.DOUBLE),
        make_node(
            "TreeEnsembleRegressor",
            ["features_double"],
            ["trees"],
            domain=_ML,
            **_tree_attributes(ranker.booster),
        ),
        make_node("Gather", ["features", "retrieval_score_position"], ["retrieval_score"], axis=1),
        make_node("Mul", ["retrieval_score", "score_scale"], ["start"]),
        make_node("Add", ["trees", "start"], ["score"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        path.stem,
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", num_features])],
        [onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, ["batch", 1])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(_ML, ML_OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _tree_attributes(booster: "lightgbm.Booster") -> dict[str, Any]:
    """Returns the attributes of `TreeEnsembleRegressor`: a list for each
    property of the nodes of all trees.
    """
    nodes: list[tuple[int, int, str, int, float, int, int]] = []
    leaves: list[tuple[int, int, float]] = []
    for tree, description in enumerate(booster.dump_model()["tree_info"]):
        waiting, named = [(0, description["tree_structure"])], 1
        while waiting:
            name, node = waiting.pop()
            if "leaf_value" in node:
                nodes.append((tree, name, "LEAF", 0, 0.0, 0, 0))
                leaves.append((tree, name, node["leaf_value"]))
                continue
            assert (node["decision_type"], node["missing_type"]) == ("<=", "None"), (
                "features are numbers, and never missing"
            )
            nodes.append(
                (
                    tree,
                    name,
                    "BRANCH_LEQ",
                    node["split_feature"],
                    _threshold(node["threshold"]),
                    named,
                    named + 1,
                )
            )
            waiting += [(named, node["left_child"]), (named + 1, node["right_child"])]
            named += 2
    columns = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids")
    attributes: dict[str, Any] = {
        f"nodes_{name}": list(values) for name, values in zip(columns, zip(*nodes, strict=True), strict=True)
    }
    attributes["nodes_values_as_tensor"] = onnx.numpy_helper.from_array(
        np.array(attributes.pop("nodes_values"), dtype=np.float64)
    )
    attributes["target_treeids"], attributes["target_nodeids"], weights = (
        list(values) for values in zip(*leaves, strict=True)
    )
    attributes["target_weights_as_tensor"] = onnx.numpy_helper.from_array(np.array(weights, dtype=np.float64))
    return {**attributes, "target_ids": [0] * len(leaves), "n_targets": 1}


def _threshold(value: float) -> float:
    """Returns the ONNX threshold of a LightGBM threshold.

    LightGBM reads features at its bounds around zero as zero, which is above the lower bound: so must ONNX.
    """
    return math.nextafter(value, -math.inf) if value == -LIGHTGBM_ZERO else value


def describe(path: Path) -> NetworkSpec:
    """Returns names, dtypes and shapes of a file's inputs and outputs."""
    graph = onnx.load(path).graph
    return NetworkSpec(
        inputs=tuple(_spec(value) for value in graph.input),
        outputs=tuple(_spec(value) for value in graph.output),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype.name, shape=shape)
