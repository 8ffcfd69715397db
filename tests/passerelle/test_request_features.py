"""Features that a request gives: as a row of a table, and refused by name."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from passerelle.dataset import FeatureColumn
from passerelle.encoding import MAX_NUMBER, FeatureEncoding, fit_encoding
from passerelle.errors import UserError
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
        ({"place": 3.5}, "user_features.place: 3.5 is not a text, as a feature of kind categorical is"),
        ({"place": "\ud800"}, "user_features.place: '\\ud800' is not a text, as"),
        (
            {"tags": "Drama"},
            "user_features.tags: 'Drama' is not a list of texts, as a feature of kind multi_categorical is",
        ),
        ({"tags": [True]}, "user_features.tags: [True] is not a list of texts"),
        ({"age": "young"}, "user_features.age: 'young' is not a number, as"),
        ({"age": 10**400}, "is not a number, as"),
        ({"image": ["a", "b"]}, "user_features.image: ['a', 'b'] is not a list of 2 numbers, as"),
        ({"image": [1, 2, 3]}, "user_features: column 'image': 1 vectors are not 2 numbers long"),
    ],
)
def test_wrong_values_of_a_request_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        encode_values(encoding_of_a_request(), given, "user_features")
