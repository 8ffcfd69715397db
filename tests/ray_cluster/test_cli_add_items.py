"""`passerelle add-items`: from a table of the bundle's own columns, and from a file of the user's own."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from passerelle.bundle import open_bundle
from passerelle.dataset import Dataset
from tests.ray_cluster.conftest import SMALL, Cli, parsed

DESCRIPTION = """
name = "films"
item_id_type = "int64"
user_id_type = "int64"

[[events]]
files = ["log.csv"]
user_id = "user"
item_id = "film"
timestamp = "time"

[items]
files = ["films.csv"]
id = "film"

[items.features]
genres = { kind = "multi_categorical", column = "kinds", separator = "|" }
year = { kind = "numeric", column = "made" }
"""


def test_items_are_added_to_a_bundle(cli: Cli, dataset: Dataset, tmp_path: Path) -> None:
    run, bundle, grown = (tmp_path / name for name in ("run", "bundle", "grown"))
    small = [
        part
        for setting in (*SMALL[1::2], "training.max_epochs=3")
        if "mask" not in setting
        for part in ("--set", setting)
    ]
    for arguments in (
        ("train", "two_tower", "--dataset", dataset.path, "--out", run, "--no-ray", *small),
        ("train-ranker", run),
        ("export", run, "--out", bundle),
    ):
        assert cli(*arguments)[0] == 0
    new = open_bundle(bundle).items.slice(0, 2).set_column(0, "item_id", pa.array([10**6, 10**6 + 1]))
    new = new.set_column(new.column_names.index("genres"), "genres", pa.array([["Drama"], ["of today"]]))
    pyarrow.parquet.write_table(new, tmp_path / "new.parquet")
    status, out, _ = cli("add-items", bundle, tmp_path / "new.parquet", "--out", grown)
    assert status == 0
    assert "2 items added, 122 in all" in out
    assert "1 values of genres that training never saw" in out
    report = parsed(
        cli("add-items", bundle, tmp_path / "new.parquet", "--out", grown, "--overwrite", "--json")
    )
    assert (report["added"], report["items"], report["unknown_values"]) == (2, 122, {"genres": 1})
    (tmp_path / "new.csv").write_text("film,kinds,made\n1000007,Drama|Crime,1999\n")
    (tmp_path / "films.toml").write_text(DESCRIPTION)
    report = parsed(
        cli(
            "add-items",
            bundle,
            tmp_path / "new.csv",
            "--description",
            tmp_path / "films.toml",
            "--out",
            grown,
            "--overwrite",
            "--json",
        )
    )
    assert report["added"] == 1 and open_bundle(grown).items.slice(120, 1).to_pylist() == [
        {"item_id": 10**6 + 7, "title": None, "genres": ["Drama", "Crime"], "year": 1999.0}
    ]
    pyarrow.parquet.write_table(open_bundle(grown).items.slice(120, 1), tmp_path / "new.parquet")
    status, _, err = cli("add-items", grown, tmp_path / "new.parquet", "--out", tmp_path / "again")
    assert status == 1
    assert "1 of the items are in" in err
