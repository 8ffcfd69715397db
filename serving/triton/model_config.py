"""Makes a `config.pbtxt` agree with the networks of a bundle.

Everything else in the file, comments included, stays as it is.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from passerelle.bundle import NetworkSpec, TensorSpec
from passerelle.errors import UserError
from serving.triton.client import parse_model_config

_TRITON_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bool": "TYPE_BOOL",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
}


def fitted_config(
    text: str,
    network: NetworkSpec,
    max_history: int,
    where: str,
    widths: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Returns the text with the network's fixed dims, also in the warm-up, whose histories fit the bundle.

    Triton's rule: a dimension that the ONNX file fixes must be written in the configuration.

    Args:
        widths: minimum width of inputs of a free width in the warm-up; other versions may read more.

    Raises:
        UserError: the text is not a configuration, has no batching, or its tensors are not the network's.
    """
    parse_model_config(text, where)
    for tensor in (*network.inputs, *network.outputs):
        text = _with_dims(text, tensor, max_history, widths.get(tensor.name))
    remaining = disagreements(text, network, where)
    if remaining:
        raise UserError(f"{where}: {remaining[0]}: correct it by hand")
    return text


def disagreements(text: str, network: NetworkSpec, where: str) -> list[str]:
    """Returns the contradictions between the configuration and the network, one sentence each.

    Raises:
        UserError: the text is not a configuration.
    """
    config = parse_model_config(text, where)
    found = (
        []
        if config.max_batch_size > 0
        else [f"max_batch_size is {config.max_batch_size}, requests could not be merged"]
    )
    for kind, specs, configured in (
        ("input", network.inputs, config.input),
        ("output", network.outputs, config.output),
    ):
        by_name = {tensor.name: tensor for tensor in configured}
        if sorted(by_name) != sorted(spec.name for spec in specs):
            found.append(
                f"{kind}s are {sorted(by_name)}, the bundle's are {sorted(spec.name for spec in specs)}"
            )
            continue
        found += [
            sentence for spec in specs for sentence in _tensor_disagreements(kind, spec, by_name[spec.name])
        ]
    return found


def _dims(spec: TensorSpec) -> list[int]:
    """Returns dims as a configuration writes them: without the batch, -1 for a free one."""
    return [size if isinstance(size, int) else -1 for size in spec.shape[1:]]


def _tensor_disagreements(kind: str, spec: TensorSpec, tensor: Any) -> list[str]:
    wanted, dims = _dims(spec), list(tensor.dims)
    type_name = (
        type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
    )
    found = []
    if len(wanted) != len(dims) or any(
        want not in (-1, have) for want, have in zip(wanted, dims, strict=True)
    ):
        found.append(f"{kind} {spec.name} has dims {dims}, the bundle's are {wanted}")
    if type_name != _TRITON_TYPES.get(spec.dtype):
        found.append(f"{kind} {spec.name} is {type_name}, the bundle's is {spec.dtype}")
    return found


def _with_dims(text: str, spec: TensorSpec, max_history: int, width: int | None) -> str:
    """Writes the dims wherever the tensor is named with dims after it.

    A free dim within bounds keeps its value.
    """

    def rewrite(found: re.Match[str]) -> str:
        sizes = [int(size) for size in found["sizes"].split(",")]
        wanted = _dims(spec)
        if len(sizes) != len(wanted):
            return found[0]
        free = [
            have if have == -1 else min(have, max_history) if width is None else max(have, width)
            for have in sizes
        ]
        fitted = [have if want == -1 else want for have, want in zip(free, wanted, strict=True)]
        return found[0] if fitted == sizes else f"{found['before']} {', '.join(map(str, fitted))} ]"

    pattern = (
        rf'(?P<before>(?:name|key):\s*"{re.escape(spec.name)}"[^\[\]]*?dims:\s*\[)(?P<sizes>[-\d\s,]*\d\s*)\]'
    )
    return re.sub(pattern, rewrite, text)
