"""Inputs that `prepare` must refuse."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from passerelle.errors import UserError
from passerelle.prepare import PrepareConfig, prepare
from tests.passerelle.conftest import WriteCsv

GOOD = [("u", "a", 1), ("u", "b", 2), ("v", "a", 3)]


def refused(config: PrepareConfig, source: Path, message: str) -> None:
    """Preparing fails with one line that matches, and leaves nothing behind."""
    out = source.parent / "result" / "out"
    with pytest.raises(UserError, match=message) as failure:
        prepare(config, source, out)
    assert "\n" not in str(failure.value)
    assert [path for path in source.parent.rglob("*") if "out" in path.name] == []


def with_column(name: str, values: Sequence[object], write_csv: WriteCsv) -> Path:
    """Write events in which one column has the given values."""
    columns = {"user": ["u"] * len(values), "item": ["1"] * len(values), "time": ["1"] * len(values)} | {
        name: values
    }
    return write_csv(list(zip(*columns.values(), strict=True)))
