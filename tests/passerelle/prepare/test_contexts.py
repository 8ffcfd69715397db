"""Context features of events: read, kept in the order of the events, and refused."""

from pathlib import Path
from typing import Any

import pytest

from passerelle.dataset import open_dataset
from passerelle.errors import UserError
from passerelle.prepare import prepare
from tests.passerelle.conftest import WriteCsv, config_of

HEADER = ("user", "item", "time", "device", "place")
FEATURES = {
    "device": {"kind": "categorical", "column": "device"},
    "place": {"kind": "numeric", "column": "place"},
}
EVENTS = [
    ("u2", "a", 5, "mobile", "1.5"),
    ("u1", "b", 9, "", "2"),
    ("u1", "a", 3, "desktop", ""),
    ("u1", "a", 3, "desktop", "7"),  # the same event once more: dropped
    ("u1", "c", 6, "mobile", "-1"),
]


def described(**changes: Any) -> Any:
    return config_of(**{"context": {"features": FEATURES}, **changes})


def test_context_features_follow_their_events(write_csv: WriteCsv, tmp_path: Path) -> None:
    dataset = open_dataset(prepare(described(), write_csv(EVENTS, header=HEADER), tmp_path / "out").path)
    assert dataset.contexts.to_pydict() == {
        "device": ["desktop", "mobile", None, "mobile"],
        "place": [None, -1.0, 2.0, 1.5],
    }
    assert [dataset.item_ids().ids([row])[0] for row in dataset.item_rows_E] == ["a", "c", "b", "a"]
    kinds = {feature.name: feature.kind for feature in dataset.manifest.context_features}
    assert kinds == {"device": "categorical", "place": "numeric"}
    assert "contexts.arrow" in dataset.manifest.files


def test_without_context_features_there_is_no_file(write_csv: WriteCsv, tmp_path: Path) -> None:
    source = write_csv(EVENTS, header=HEADER)
    dataset = prepare(config_of(), source, tmp_path / "out")
    assert not dataset.contexts.column_names and not (dataset.path / "contexts.arrow").exists()
    other = prepare(described(), source, tmp_path / "other")
    assert dataset.fingerprint() != other.fingerprint() and other.fingerprint().startswith(
        dataset.fingerprint()
    )


def test_a_bad_number_is_named_or_missing(write_csv: WriteCsv, tmp_path: Path) -> None:
    source = write_csv([*EVENTS, ("u3", "a", 1, "mobile", "first")], header=HEADER)
    with pytest.raises(UserError, match=r"no number in column 'place' for context.place.*'first'"):
        prepare(described(), source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    dataset = prepare(described(on_bad_rows="drop"), source, tmp_path / "out")
    assert dataset.contexts["place"].to_pylist()[-1] is None and dataset.manifest.quality["bad_values"] == {
        "context.place": 1
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"context": {"features": {"at": {"kind": "timestamp", "column": "time"}}}},
            "features at: of kind categorical or numeric",
        ),
        (
            {"context": {"features": {"at": {"kind": "numeric", "column": "place", "from_events": "last"}}}},
            "without from_events",
        ),
        (
            {
                "users": {
                    "features": {"device": {"kind": "categorical", "column": "device", "from_events": "last"}}
                }
            },
            "context.features device: there is a user feature of this name",
        ),
    ],
)
def test_descriptions_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        described(**changes)


def test_a_column_that_is_not_there(write_csv: WriteCsv, tmp_path: Path) -> None:
    source = write_csv(EVENTS, header=HEADER)
    features = {"browser": {"kind": "categorical", "column": "browser"}}
    with pytest.raises(UserError, match="column 'browser', but none of them has it"):
        prepare(described(context={"features": features}), source, tmp_path / "out")
