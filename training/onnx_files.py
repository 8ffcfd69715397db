"""Write and describe ONNX files; the only file that imports the exporters."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from passerelle.bundle import NetworkSpec, TensorSpec
from training.encoder import QueryEncoder

if TYPE_CHECKING:
    import lightgbm

OPSET = 18


def export_query_encoder(network: QueryEncoder, path: Path, dim: int) -> None:
    """`item_vectors` float32 [batch, length, D], `mask` bool [batch, length] -> `query` float32 [batch, D]."""
    max_history = network.encoder.max_length - 1
    example = (torch.zeros(2, max_history, dim), torch.ones(2, max_history, dtype=torch.bool))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=1, max=max_history)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            network,
            example,
            input_names=["item_vectors", "mask"],
            output_names=["query"],
            dynamic_shapes={"item_vectors": {0: batch, 1: length}, "mask": {0: batch, 1: length}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)
    onnx.checker.check_model(path)


def export_ranker(booster: "lightgbm.Booster", path: Path, num_features: int) -> None:
    """`features` float32 [batch, F] -> `score` float32 [batch, 1], the raw score of the trees."""
    import onnxmltools  # here and not above: it imports scikit-learn, which takes seconds
    from onnxmltools.convert.common.data_types import FloatTensorType

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = onnxmltools.convert_lightgbm(booster, initial_types=[("features", FloatTensorType([None, num_features]))], zipmap=False)
    assert len(model.graph.output) == 1, f"a ranker has one output, not {[output.name for output in model.graph.output]}"
    converted = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["score" if name == converted else name for name in node.output]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, ["batch", 1]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model)
    onnx.save(model, path)


def describe(path: Path) -> NetworkSpec:
    """Names, dtypes and shapes of a file's inputs and outputs."""
    graph = onnx.load(path).graph
    return NetworkSpec(inputs=tuple(_spec(value) for value in graph.input), outputs=tuple(_spec(value) for value in graph.output))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype.name, shape=shape)
