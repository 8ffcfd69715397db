"""Splits that the user gives as a file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from passerelle.arrow import write_table
from passerelle.config import validate
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import SplitConfig, evaluation_users, make_split
from tests.passerelle.conftest import MakeDataset

TEXT = "user_id,validation_events,test_events\nu2,1,1\nu0,0,2\n"


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    """Users u0, u1 and u2 with four, three and five events; all of u0 happen at once."""
    return make_dataset(
        [[(2, 7), (3, 7), (4, 7), (5, 7)], [(2, 1), (3, 2), (4, 3)], [(2, time) for time in (1, 2, 3, 4, 5)]]
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "split.csv"
    path.write_text(TEXT)
    return path


def of(file: Path) -> SplitConfig:
    return SplitConfig(rule="file", file=file)


def ends(dataset: Dataset, config: SplitConfig) -> list[tuple[int, int, int]]:
    split = make_split(dataset, config)
    return list(
        zip(
            split.train_end_U.tolist(),
            split.validation_end_U.tolist(),
            split.test_end_U.tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("form", ["csv", "parquet", "arrow"])
def test_counts_from_the_newest_event(form: str, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / f"split.{form}"
    table = pa.table(
        {"user_id": ["u2", "u0"], "validation_events": [1, 0], "test_events": pa.array([1, 2], pa.int32())}
    )
    {
        "csv": lambda: path.write_text(TEXT),
        "parquet": lambda: pa.parquet.write_table(table, path),
        "arrow": lambda: write_table(path, table),
    }[form]()
    assert ends(dataset, of(path)) == [(2, 2, 4), (7, 7, 7), (10, 11, 12)]
    split = make_split(dataset, of(path))
    assert evaluation_users(split, "validation").user_rows_Q.tolist() == [2]
    assert evaluation_users(split, "test").user_rows_Q.tolist() == [0, 2]


def test_one_and_one_is_leave_one_out(dataset: Dataset, file: Path) -> None:
    file.write_text(
        "user_id,validation_events,test_events\n" + "".join(f"u{user},1,1\n" for user in range(3))
    )
    assert ends(dataset, of(file)) == ends(dataset, SplitConfig())


def test_a_pinned_split_checks_its_file(
    dataset: Dataset, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pinned = of(Path("split.csv")).pinned()
    monkeypatch.chdir("/")
    assert ends(dataset, pinned) == ends(dataset, of(file))
    file.write_text(TEXT.replace("u0,0,2", "u0,0,1"))
    assert ends(dataset, of(file))[0] == (3, 3, 4)
    with pytest.raises(UserError, match=r"split.csv: not the split that the run was trained with"):
        make_split(dataset, pinned)
    file.unlink()
    with pytest.raises(UserError, match=r"split.csv'?: there is no such file"):
        make_split(dataset, pinned)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user_id,test_events\nu0,1\n",
            "no column validation_events; a split has the columns user_id, validation_events, test_events",
        ),
        (TEXT + "u9,1,1\n", "1 of 3 users are not in the dataset, the first is 'u9'"),
        (TEXT + "u0,1,1\n", "user 'u0' has 2 lines; each user has one at most"),
        (TEXT.replace("u0,0,2", "u0,3,2"), r"user 'u0' has 4 events, fewer than the 3 \+ 2 held out"),
        (TEXT.replace("u0,0,2", "u0,-1,2"), "validation_events is -1 in line 2, below 0"),
        (TEXT.replace("u0,0,2", "u0,,2"), "column validation_events has empty values"),
        (TEXT.replace("u0,0,2", "u0,some,2"), r"cannot be read: .*some"),
        ("", "cannot be read: Empty CSV file"),
        (
            "user_id,validation_events,test_events\nu0,0,2\n",
            "split file: no user of the 3 has both history and a validation event",
        ),
    ],
)
def test_bad_files(text: str, message: str, dataset: Dataset, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        make_split(dataset, of(file))
    assert "\n" not in str(caught.value)


def test_ids_and_counts_of_another_type(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "split.parquet"
    pa.parquet.write_table(pa.table({"user_id": [1], "validation_events": [1], "test_events": [1]}), path)
    with pytest.raises(UserError, match="user_id is int64, in the dataset it is string"):
        make_split(dataset, of(path))
    pa.parquet.write_table(
        pa.table({"user_id": ["u0"], "validation_events": [0.5], "test_events": [1]}), path
    )
    with pytest.raises(UserError, match="validation_events is double, not a whole number"):
        make_split(dataset, of(path))


@pytest.mark.parametrize(
    "values", [{"rule": "file"}, {"file": "split.csv"}, {"rule": "global_time", "file": "split.csv"}]
)
def test_a_rule_and_a_file_that_do_not_agree(values: dict[str, str]) -> None:
    with pytest.raises(UserError, match="rule = 'file' needs a file, and only it has one"):
        validate(SplitConfig, values, "split")
