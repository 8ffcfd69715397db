"""The bundle's dims in `config.pbtxt`."""

from pathlib import Path

import pytest

from passerelle.bundle import NetworkSpec, TensorSpec
from passerelle.errors import UserError
from serving.triton.client import parse_model_config
from serving.triton.model_config import disagreements, fitted_config
from tests.support.bundles import FEATURE_INPUTS

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def network(dim: int) -> NetworkSpec:
    """A query encoder of this width."""
    inputs = (
        TensorSpec(name="item_vectors", dtype="float32", shape=("batch", "length", dim)),
        TensorSpec(name="mask", dtype="bool", shape=("batch", "length")),
        TensorSpec(name="event_types", dtype="int64", shape=("batch", "length")),
        TensorSpec(name="timestamps_ms", dtype="int64", shape=("batch", "length")),
        TensorSpec(name="query_timestamp_ms", dtype="int64", shape=("batch", 1)),
        *FEATURE_INPUTS,
    )
    return NetworkSpec(
        inputs=inputs, outputs=(TensorSpec(name="query", dtype="float32", shape=("batch", dim)),)
    )


@pytest.fixture
def text() -> str:
    return (REPOSITORY / "query_encoder" / "config.pbtxt").read_text()


def test_compact_style_is_kept(text: str) -> None:
    compact = text.replace("[ -1, 64 ]", "[-1,64]")
    assert fitted_config(compact, network(64), 200, "config") == compact


def test_our_configuration_is_left_unchanged(text: str) -> None:
    assert fitted_config(text, network(64), 200, "config") == text


def test_other_dims_are_written_and_the_rest_is_kept(text: str) -> None:
    fitted = fitted_config(text, network(128), 50, "config")
    config = parse_model_config(fitted, "config")
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [
        [-1, 128],
        *[[-1]] * 3,
        [1],
        *[[-1]] * 4,
        [128],
    ]
    assert [list(warmup.inputs["item_vectors"].dims) for warmup in config.model_warmup] == [
        [16, 128],
        [50, 128],
    ]
    assert [list(warmup.inputs["mask"].dims) for warmup in config.model_warmup] == [[16], [50]]
    assert [list(warmup.inputs["timestamps_ms"].dims) for warmup in config.model_warmup] == [[16], [50]]
    changed = [
        (old, new) for old, new in zip(text.splitlines(), fitted.splitlines(), strict=True) if old != new
    ]
    assert len(changed) == 7 and not any(line.lstrip().startswith("#") for pair in changed for line in pair)
    assert disagreements(text, network(128), "config") == [
        "input item_vectors has dims [-1, 64], the bundle's are [-1, 128]",
        "output query has dims [64], the bundle's are [128]",
    ]


def test_warm_up_has_the_width_of_the_network(text: str) -> None:
    tensor = '"context_numbers" value: { data_type: TYPE_FP32 dims: '
    text = text.replace(f"{tensor}[ 1 ]", f"{tensor}[ 9 ]")
    widths = {"user_codes": 5, "user_numbers": 300, "context_codes": 1, "context_numbers": 1}
    fitted = fitted_config(text, network(64), 50, "config", widths)
    config = parse_model_config(fitted, "config")
    # Another version reads this many.
    wanted = widths | {"context_numbers": 9}
    assert all(
        list(warmup.inputs[name].dims) == [width]
        for warmup in config.model_warmup
        for name, width in wanted.items()
    )
    assert [list(tensor.dims) for tensor in config.input if tensor.name in widths] == [[-1]] * 4
    assert disagreements(fitted, network(64), "config") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'name: "mask"',
            'name: "masks"',
            r"inputs are \[.*'masks', .*\], the bundle's are \[.*'mask', .*\]: correct it",
        ),
        ("TYPE_BOOL", "TYPE_UINT8", "input mask is TYPE_UINT8, the bundle's is bool"),
        ("max_batch_size: 64", "max_batch_size: 0", "max_batch_size is 0"),
        ("[ -1, 64 ]", "[ 64 ]", r"input item_vectors has dims \[64\], the bundle's are \[-1, 64\]"),
        ("max_batch_size: 64", "max_batch: 64", "query: not a Triton model configuration .*max_batch"),
    ],
)
def test_contradictions_are_named(text: str, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted_config(text.replace(old, new), network(64), 200, "query")
