"""Documents: their examples run, their figures are those of result files, their links exist."""

import ast
import contextlib
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from passerelle.bundle import open_bundle
from passerelle.dataset import open_dataset
from passerelle.errors import UserError
from passerelle.prepare import load_prepare_config, prepare
from ray_cluster.cli.main import VERBS, passerelle
from serving.config import load_serving_config
from serving.observability.metrics import Telemetry
from serving.schemas.recommend import RecommendRequest, Timings
from tests.support.datasets import Planted, planted_dataset
from training.config import load_recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
GUIDES = "".join(
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("training", "evaluation", "features", "playlists", "operations", "python")
)


DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "model_repository" / "README.md",
]


def heading_anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[list[str]]:
    """Every `passerelle ...` line of the code blocks of a document."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [
        shlex.split(line, comments=True)[1:]
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("passerelle ")
    ]


def test_the_readme_has_commands() -> None:
    assert {arguments[0] for arguments in commands(README)} >= set(VERBS) - {"inspect", "doctor"}


@pytest.mark.parametrize(
    "arguments", [*commands(README), *commands(GUIDES), *commands(SERVING)], ids=" ".join
)
def test_commands_are_understood(arguments: list[str]) -> None:
    verb = passerelle.get_command(click.Context(passerelle), arguments[0])
    assert verb is not None
    verb.make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("arguments", [line for line in commands(GUIDES) if "--set" in line], ids=" ".join)
def test_settings_of_the_guide_are_accepted_and_change_the_recipe(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "split.csv").write_text("user_id,validation_events,test_events\n17,2,1\n", encoding="utf-8")
    overrides = tuple(value for flag, value in itertools.pairwise(arguments) if flag == "--set")
    config = load_recipe(arguments[1], overrides)
    for left_out in overrides:
        with contextlib.suppress(UserError):  # settings that only go together
            assert (
                load_recipe(arguments[1], tuple(override for override in overrides if override != left_out))
                != config
            ), left_out


def test_the_serving_file_of_the_guide_is_accepted(tmp_path: Path) -> None:
    text = re.search(r"```toml\n(.*?)```", SERVING, flags=re.DOTALL)
    assert text is not None
    path = tmp_path / "shop.toml"
    path.write_text(text[1], encoding="utf-8")
    config = load_serving_config(path)
    assert (
        config.playlist("tonight").ordering.diversify == "mixing" and config.cold_start.min_request_items == 3
    )


def test_the_dashboard_asks_for_metrics_that_are_there() -> None:
    telemetry = Telemetry()
    telemetry.count("recommend", "ok")
    telemetry.index("faiss", {"all": 1.0})
    there = set(re.findall(r"^# TYPE (\w+) \w+$", telemetry.exposition().decode(), flags=re.MULTILINE))
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for text in expressions
        for name in re.findall(r"passerelle_\w+", text)
    }
    assert asked == {name for name in there if not name.endswith("_created")}
    stages = set(Timings.model_fields)
    assert {stage for text in expressions for stage in re.findall(r'stage!?="(\w+)"', text)} <= stages


def test_the_request_of_the_guide_is_accepted() -> None:
    text = re.search(r"```json\n(.*?)```", SERVING, flags=re.DOTALL)
    assert text is not None
    assert RecommendRequest.model_validate_json(text[1]).debug


def test_the_readme_description_of_own_logs_prepares(tmp_path: Path) -> None:
    description = re.search(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    assert description is not None
    values = tomllib.loads(description.group(1))
    least = values["filters"]["min_item_events"]
    customers = [f"c{customer}" for customer in range(least) for _ in range(4)]
    skus = ["a", "b", "c", "d"] * least
    times = pa.array(range(len(skus)), pa.int64())
    pa.parquet.write_table(
        pa.table({"customer": customers, "sku": skus, "ordered_at": times}), tmp_path / "orders.parquet"
    )
    pa.csv.write_csv(
        pa.table({"sku": ["a", "b", "c", "d"], "label": ["Tea", "Milk", "Bread", "Jam"]}),
        tmp_path / "products.csv",
    )
    toml = tmp_path / "shop.toml"
    toml.write_text(description.group(1), encoding="utf-8")
    prepare(load_prepare_config(str(toml), ()), tmp_path, tmp_path / "dataset")
    dataset = open_dataset(tmp_path / "dataset")
    assert (dataset.num_users, dataset.num_items, len(dataset.item_rows_E)) == (least, 4, 4 * least)
    assert dataset.items.column("label").to_pylist() == ["Tea", "Milk", "Bread", "Jam"]


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line]) < 20
    dataset = planted_dataset(tmp_path / "planted", Planted(num_users=60, num_items=60))
    rows_E, lengths_U = dataset.item_rows_E.astype("int64"), dataset.offsets_U1[1:] - dataset.offsets_U1[:-1]
    user_ids = dataset.users.column("user_id").to_numpy().repeat(lengths_U)
    times = pa.array(dataset.timestamps_ms_E, pa.timestamp("ms"))
    events = {"user_id": user_ids, "item_id": dataset.item_ids().ids(rows_E), "timestamp": times}
    pa.parquet.write_table(pa.table(events), tmp_path / "events.parquet")
    pa.parquet.write_table(dataset.items, tmp_path / "items.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["dataset"].num_items == 60
    assert open_bundle(tmp_path / "artifacts" / "bundle").manifest.num_users == 60


def test_the_notebook_has_no_outputs_and_its_cells_parse() -> None:
    """`make tour` executes it."""
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"]] == []
    assert [ast.parse("".join(cell["source"])) for cell in cells]


def test_the_first_screen_has_two_commands_and_six_results() -> None:
    screen = README[: README.index("<!-- results:end -->")]
    assert len(screen.splitlines()) <= 40
    assert re.findall(r"^make (\w+)", screen, flags=re.MULTILINE) == ["demo", "test"]
    header, _, *rows = re.findall(r"^\|.*\|$", screen, flags=re.MULTILINE)
    assert "Baseline" in header
    assert len(rows) == 6


def test_the_readme_table_is_that_of_the_newest_result_file() -> None:
    subprocess.run([sys.executable, ROOT / "docs" / "generate_results.py", "--check"], check=True)


def test_the_tour_names_every_file_of_the_packages() -> None:
    tour = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:passerelle|training|serving|ray_cluster)/[\w/]+\.py)`", tour))
    named |= {f"ray_cluster/cli/{name}" for name in re.findall(r"`(\w+\.py)`", tour)}
    files = {
        str(path.relative_to(ROOT))
        for package in ("passerelle", "training", "serving", "ray_cluster")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert files - named == set(), "files that the tour leaves out"
    assert named - files == set(), "files that the tour names and that do not exist"


@pytest.mark.parametrize("document", sorted(str(path.relative_to(ROOT)) for path in DOCUMENTS))
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", path.read_text(encoding="utf-8"))
    assert [target for target, _ in targets if not (path.parent / target).exists()] == []
    assert [
        (target, anchor)
        for target, anchor in targets
        if anchor
        and anchor
        not in heading_anchors(((path.parent / target) if target else path).read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize("document", sorted(str(path.relative_to(ROOT)) for path in DOCUMENTS))
def test_no_document_installs_a_package_that_is_not_on_pypi(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert re.findall(r"pip install [\"'`]*passerelle", text) == []
