"""The README of the model repository describes the tensors that `config.pbtxt` declares."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from passerelle.bundle import QUERY_ENCODER, RANKER

REPOSITORY = Path(__file__).parent.parent / "model_repository"
FREE = ("length", "any")
"""Dimensions that `config.pbtxt` leaves free, by their names in the README.

A capital letter stands for a number of the bundle.
"""


class Tensor(NamedTuple):
    """A tensor of a model, without its batch dimension."""

    name: str
    data_type: str
    dims: tuple[str, ...]
    is_output: bool


def declared(model: str) -> list[Tensor]:
    """Returns the tensors of a model's `config.pbtxt`."""
    text = (REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    blocks = re.findall(r"^(input|output) \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    pattern = re.compile(r'\{ name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([^\]]+) \] \}')
    return [
        Tensor(name, data_type, tuple(dims.strip().split(", ")), kind == "output")
        for kind, block in blocks
        for name, data_type, dims in pattern.findall(block)
    ]


def documented(model: str) -> list[Tensor]:
    """Returns the tensors of a model's table in the README."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = re.search(rf"^`{model}` [^\n]*\n\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    assert table is not None, f"no table of {model}"
    pattern = re.compile(r"^\| `(\w+)`( \(output\))? \| (\w+) \| \[batch, ([^\]]+)\] \|", re.MULTILINE)
    return [
        Tensor(name, data_type, tuple(dims.split(", ")), bool(output))
        for name, output, data_type, dims in pattern.findall(table[1])
    ]


@pytest.mark.parametrize("model", [QUERY_ENCODER, RANKER])
def test_readme_describes_the_tensors(model: str) -> None:
    found, expected = documented(model), declared(model)
    assert len(found) > 1
    assert [tensor._replace(dims=()) for tensor in found] == [tensor._replace(dims=()) for tensor in expected]
    sizes: dict[str, set[str]] = {}
    for tensor, other in zip(found, expected, strict=True):
        assert len(tensor.dims) == len(other.dims), tensor.name
        for name, size in zip(tensor.dims, other.dims, strict=True):
            sizes.setdefault(name, set()).add(size)
    for name, values in sizes.items():
        if name in FREE:
            assert values == {"-1"}, name
        elif name.isdigit():
            assert values == {name}
        else:
            assert len(values) == 1 and int(next(iter(values))) > 0, name
