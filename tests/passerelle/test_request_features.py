"""Features that a request gives: as a row of a table, and refused by name."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from passerelle.dataset import FeatureColumn, FeatureKind
from passerelle.encoding import MAX_NUMBER, FeatureEncoding, fit_encoding
from passerelle.errors import UserError
from passerelle.prepare.conversions import make_feature
from passerelle.prepare.feature_config import FeatureConfig
from passerelle.prepare.row_counts import RowCounts
from passerelle.request_features import encode_values

FEATURES_OF_A_REQUEST = [
    FeatureColumn(name="place", kind="categorical"),
    FeatureColumn(name="tags", kind="multi_categorical"),
]
FEATURES_OF_A_REQUEST += [
    FeatureColumn(name="age", kind="numeric"),
    FeatureColumn(name="image", kind="vector", width=2),
]


def encoding_of_a_request() -> FeatureEncoding:
    table = pa.table(
        {
            "place": ["a", "b"],
            "tags": [["x"], ["x", "y"]],
            "age": [1.0, 3.0],
            "image": [[1.0, 2.0], [0.0, 0.0]],
        }
    )
    return fit_encoding(table, FEATURES_OF_A_REQUEST, 1)


def test_values_of_a_request_are_a_row() -> None:
    encoding = encoding_of_a_request()
    given = {"place": "b", "tags": ["y", "?"], "age": 3, "image": [1, 2]}
    expected = encoding.encode(pa.table({name: [value] for name, value in given.items()}))
    found = encode_values(encoding, given, "user_features")
    assert np.array_equal(found.codes_NS, expected.codes_NS) and np.array_equal(
        found.numbers_NF, expected.numbers_NF
    )
    whole = fit_encoding(
        pa.table({"place": ["3", "4"], "tags": [["3"], ["4"]]}), FEATURES_OF_A_REQUEST[:2], 1
    )
    numbers, texts = (
        encode_values(whole, {"place": kind(3), "tags": [kind(4)]}, "").codes_NS for kind in (int, str)
    )
    assert np.array_equal(numbers, texts) and numbers.all(), "whole numbers are what they were in the logs"
    nothing = encode_values(encoding, {}, "user_features")
    assert not nothing.codes_NS.any() and nothing.numbers_NF[0, 0] == 1, "an unknown user"


@pytest.mark.parametrize(
    ("kind", "values", "typed"),
    [
        ("categorical", pa.array([True, False]), ["true", "false"]),
        ("categorical", pa.array([10.0, 10.5]), ["10", "10.5"]),
        ("categorical", pa.array([1999, -1]), ["1999", "-1"]),
        ("categorical", pa.array(["1950-01-01", "1e3"]), ["1950-01-01", "1e3"]),
        ("numeric", pa.array([True, False]), ["1", "0"]),
        ("numeric", pa.array([1000.0, 0.5]), ["1e3", ".5"]),
    ],
)
def test_values_are_read_as_prepare_reads_them(kind: FeatureKind, values: pa.Array, typed: list[str]) -> None:
    """As JSON has them, and as text that a user types: the column of `prepare` gives the same codes."""
    feature = FeatureConfig(kind=kind, column="x")
    column = make_feature(Path("x"), "x", feature, [values], RowCounts("error"))
    encoding = fit_encoding(pa.table({"x": column}), [FeatureColumn(name="x", kind=kind)], 1)
    expected = encoding.encode(pa.table({"x": column}))
    for given in (values.to_pylist(), typed):
        found = [encode_values(encoding, {"x": value}, "user_features") for value in given]
        assert np.array_equal(np.concatenate([each.codes_NS for each in found]), expected.codes_NS)
        assert np.array_equal(np.concatenate([each.numbers_NF for each in found]), expected.numbers_NF)
        assert not any(each.unknown for each in found)


@pytest.mark.parametrize("age", [1e300, -1e300, float(2**1000)])
def test_large_numbers_are_clipped(age: float) -> None:
    numbers_1F = encode_values(encoding_of_a_request(), {"age": age}, "user_features").numbers_NF
    assert np.isfinite(numbers_1F).all() and np.abs(numbers_1F).max() == MAX_NUMBER


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"colour": "red", "height": 3},
            "user_features: the model does not read colour, height; it reads place, tags, age, image",
        ),
        ({"place": ["a"]}, "user_features.place: ['a'] is not a text, as a feature of kind categorical is"),
        (
            {"place": float("nan")},
            "user_features.place: nan is not a text, as a feature of kind categorical is",
        ),
        ({"place": "\ud800"}, "user_features.place: '\\ud800' is not a text, as"),
        (
            {"tags": "Drama"},
            "user_features.tags: 'Drama' is not a list of texts, as a feature of kind multi_categorical is",
        ),
        ({"tags": [None]}, "user_features.tags: [None] is not a list of texts"),
        ({"age": "nan"}, "user_features.age: 'nan' is not a number, as"),
        ({"age": "young"}, "user_features.age: 'young' is not a number, as"),
        ({"age": 10**400}, "is not a number, as"),
        ({"image": ["a", "b"]}, "user_features.image: ['a', 'b'] is not a list of 2 numbers, as"),
        ({"image": [1, 2, 3]}, "user_features: column 'image': 1 vectors are not 2 numbers long"),
    ],
)
def test_wrong_values_of_a_request_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        encode_values(encoding_of_a_request(), given, "user_features")
