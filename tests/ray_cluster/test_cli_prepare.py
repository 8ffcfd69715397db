"""`passerelle prepare` and `passerelle inspect` as a user meets them: output, status, and what is left on
disk.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from passerelle.manifest import Manifest, provenance, write_manifest
from ray_cluster.cli.inspect import flat
from tests.ray_cluster.conftest import Cli
from tests.support.bundles import Shape, build_bundle
from tests.support.files import flip_byte

TOML = """
name = "shop"
title = "title"
item_id_type = "string"
user_id_type = "int64"

[[events]]
files = ["visits.csv"]
user_id = "visitor"
item_id = "article"
timestamp = "at"
timestamp_unit = "iso"
event_type = "visit"

[items]
files = ["articles.csv"]
id = "article"

[items.features]
title = { kind = "text", column = "name" }
"""

VISITS = """visitor,article,at
2,thé,2024-05-01T10:00:00
1,thé,2024-05-01T09:00:00
1,café,2024-05-01 08:00:00+02:00
,café,2024-05-01 08:00:00
1,sel,2024-05-02
"""


@pytest.fixture
def run(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Call the command line in a folder with a described shop: (status, stdout, stderr)."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "shop.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "shop" / "visits.csv").write_text(VISITS, encoding="utf-8")
    (tmp_path / "shop" / "articles.csv").write_text(
        "article,name\nthé,Thé vert\ncafé,Café\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    return cli


def test_a_description_reads_the_files_beside_it(run: Cli) -> None:
    status, out, err = run("prepare", "shop/shop.toml", "--out", "dataset")
    assert (status, err) == (0, "")
    assert out.startswith("shop: shop -> dataset")
    for what, figure in (
        ("rows read", "5"),
        ("- dropped: missing user id", "1"),
        ("events", "4"),
        ("users", "2"),
        ("items", "3"),
    ):
        assert any(line.split() == [*what.split(), figure] for line in out.splitlines()), (what, out)
    assert "2024-05-01T06:00:00+00:00" in out
    assert "items without a row" in out
    assert "- dropped: duplicate" not in out  # reasons without a row are left out


def test_json_is_one_object(run: Cli) -> None:
    shutil.move("shop/visits.csv", "elsewhere.csv")
    Path("data").mkdir()
    shutil.move("elsewhere.csv", "data/visits.csv")
    shutil.copy("shop/articles.csv", "data")
    status, out, _ = run(
        "prepare",
        "shop/shop.toml",
        "--source",
        "data",
        "--out",
        "dataset",
        "--set",
        "filters.min_item_events=2",
        "--json",
    )
    assert status == 0
    values = json.loads(out)
    assert {key: values[key] for key in ("out", "source", "name")} == {
        "out": "dataset",
        "source": "data",
        "name": "shop",
    }
    assert values["quality"]["items"] == 1
    assert values["quality"]["dropped"]["item_below_minimum"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["shop/shop.toml", "--source", "gone"],
            "gone: no such folder; --source takes the folder that holds visits.csv, articles.csv",
        ),
        (["shop/none.toml"], "shop/none.toml: no such file"),
        (["movielens-2m"], "movielens-2m: no such preset; did you mean movielens-1m?"),
        (
            ["shop/shop.toml", "--set", "filters.min_items=2"],
            "shop/shop.toml: filters.min_items: unknown key; did you mean min_item_events?",
        ),
        (["shop/shop.toml", "--set", "filters"], "--set filters: write it as section.key=value"),
        (
            ["shop/shop.toml", "--set", "user_id_type=string", "--set", "filters.min_user_events=9"],
            "no event is left of 5 rows read",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, run: Cli) -> None:
    status, out, err = run("prepare", *arguments, "--out", "dataset")
    assert (status, out) == (1, "")
    assert err.startswith("passerelle: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["shop"]


def test_out_is_kept_without_overwrite(run: Cli) -> None:
    assert run("prepare", "shop/shop.toml", "--out", "dataset")[0] == 0
    status, _, err = run("prepare", "shop/shop.toml", "--out", "dataset")
    assert (status, err) == (
        1,
        "passerelle: dataset already exists: choose another --out, or pass --overwrite to replace it\n",
    )
    assert run("prepare", "shop/shop.toml", "--out", "dataset", "--overwrite")[0] == 0


# inspect


def test_inspect_a_dataset(run: Cli) -> None:
    run("prepare", "shop/shop.toml", "--out", "dataset")
    status, out, err = run("inspect", "dataset")
    assert (status, err) == (0, "")
    assert out.startswith("dataset dataset\n")
    for words in (
        "num_events 4",
        "item_features.title text",
        "rows read 5",
        "events.0.files visits.csv",
        "filters.iterate True",
    ):
        assert any(line.split() == words.split() for line in out.splitlines()), words
    assert "files, checksums verified" in out and "interactions.arrow" in out
    status, out, _ = run("inspect", "dataset", "--json")
    values = json.loads(out)
    assert (values["path"], values["kind"], values["num_users"]) == ("dataset", "dataset", 2)
    assert values["files"]["items.arrow"]["size_bytes"] == Path("dataset/items.arrow").stat().st_size


def test_inspect_finds_one_altered_byte(run: Cli) -> None:
    run("prepare", "shop/shop.toml", "--out", "dataset")
    flip_byte(Path("dataset/users.arrow"), 100)
    for arguments in (("dataset",), ("dataset", "--json")):
        status, out, err = run("inspect", *arguments)
        assert (status, out) == (1, "")
        assert err.startswith("passerelle: dataset/users.arrow: altered since it was written")


def test_inspect_refuses_other_folders(run: Cli) -> None:
    assert run("inspect", "gone") == (1, "", "passerelle: gone: no such dataset, run or bundle\n")
    assert run("inspect", "shop") == (
        1,
        "",
        "passerelle: shop is not a dataset, run or bundle: it has no manifest.json\n",
    )


def test_inspect_a_bundle(run: Cli, tmp_path: Path) -> None:
    build_bundle(tmp_path / "bundle", Shape(num_items=20, num_users=5, num_reference_users=3, dim=8))
    status, out, _ = run("inspect", "bundle")
    assert status == 0
    assert out.startswith("bundle bundle\n")
    for words in ("num_items 20", "dim 8", "item_features.genres multi_categorical"):
        assert any(line.split() == words.split() for line in out.splitlines()), words
    assert any(
        line.split()[0] == "networks.query_encoder.inputs.item_vectors.shape"
        for line in out.splitlines()
        if line.strip()
    )
    (tmp_path / "bundle" / "ranker.onnx").unlink()
    status, _, err = run("inspect", "bundle")
    assert status == 1
    assert "ranker.onnx: missing from this bundle" in err


class RunLike(Manifest):
    """What a run writes, as far as `inspect` is concerned: any fields."""

    KIND: ClassVar[str] = "run"
    MADE_BY: ClassVar[str] = "passerelle train"
    recipe: str
    validation: dict[str, float]
    config: dict[str, Any]


def test_inspect_a_run_without_importing_torch(run: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "best.ckpt").write_bytes(b"weights")
    common = provenance(RunLike, folder, ["best.ckpt"], ["numpy"])
    fields = {"recipe": "bert4rec", "validation": {"ndcg@10": 0.15}, "config": {"model": {"dim": 64}}}
    write_manifest(folder, RunLike.model_validate({**common, **fields}))
    script = (
        "import sys; from ray_cluster.cli.main import passerelle; "
        "passerelle(['inspect', sys.argv[1]], standalone_mode=False)"
    )
    script += "; assert not {'torch', 'ray', 'lightgbm'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "recipe bert4rec",
        "validation.ndcg@10 0.15",
        "model.dim 64",
        f"best.ckpt 7 {common['files']['best.ckpt']['sha256'][:12]}",
    ):  # type: ignore[index]
        assert any(line.split() == words.split() for line in done.stdout.splitlines()), words
    (folder / "best.ckpt").write_bytes(b"weighty")
    status, _, err = run("inspect", "run")
    assert status == 1
    assert "best.ckpt: altered since it was written" in err


def test_flat() -> None:
    nested = {
        "a": {"b": 1, "none": None, "empty": "", "no": [], "off": False},
        "l": [1, "x"],
        "n": [{"name": "f", "kind": "text"}, {"x": 1, "y": 2}],
    }
    assert flat(nested) == [
        ("a.b", "1"),
        ("a.off", "False"),
        ("l", "1, x"),
        ("n.f", "text"),
        ("n.1.x", "1"),
        ("n.1.y", "2"),
    ]
