"""The wheel: what it holds, and that it works where there is no checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from ray_cluster.doctor import read_pins
from ray_cluster.resources import PACKAGES
from tests.support.raw_logs import write_raw_logs
from tests.support.source_tree import ROOT

SHIPPED = {
    "model_repository/query_encoder/config.pbtxt",
    "model_repository/ranker/config.pbtxt",
    "requirements/base.txt",
    "requirements/torch.txt",
    "requirements/torchrec-cpu.txt",
    "requirements/torchrec-cuda.txt",
}
LOOK_AROUND = """
import json, passerelle
from passerelle.manifest import git_commit
from passerelle.prepare.config import preset_names
from ray_cluster import publishing, resources
from ray_cluster.doctor import read_pins
from training.config import recipe_names
requirements = resources.resource("requirements")
print(json.dumps({
    "package": passerelle.__file__,
    "commit": git_commit(),
    "presets": len(preset_names()),
    "recipes": len(recipe_names()),
    "templates": sorted(
        path.parent.name for path in resources.resource("model_repository").rglob("config.pbtxt")
    ),
    "torch": read_pins(requirements, ["torch.txt"])["torch"],
    "workers_get": sorted(resources.runtime_env()),
}))
"""


def tracked_files() -> set[str]:
    command = ["git", "ls-files", "--", *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


def test_it_holds_the_packages_and_what_lies_beside_them(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names >= tracked_files() | {f"ray_cluster/shipped/{name}" for name in SHIPPED}
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    assert {Path(name).suffix for name in names} == {".py", ".toml", ".html", ".pbtxt", ".txt"}


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed where this environment's libraries are seen, and this checkout is not."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    # A folder that a .pth file names is searched.
    # Its own .pth files, of which one names the checkout, are not read.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        "--disable-pip-version-check",
    ]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, *install, str(wheel)], check=True, capture_output=True)
    return folder


def run_there(environment: Path, cwd: Path, program: str, *arguments: str) -> str:
    without_checkout = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(environment / "bin" / program), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=without_checkout, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_finds_its_files_without_a_checkout(environment: Path, tmp_path: Path) -> None:
    found = json.loads(run_there(environment, tmp_path, "python", "-c", LOOK_AROUND))
    assert found.pop("package").startswith(str(environment))
    assert found == {
        "commit": None,
        "presets": len(list((ROOT / "passerelle" / "prepare" / "presets").iterdir())),
        "recipes": len(list((ROOT / "training" / "recipes").glob("*.toml"))),
        "templates": ["query_encoder", "ranker"],
        "torch": read_pins(ROOT / "requirements", ["torch.txt"])["torch"],
        "workers_get": ["py_modules"],
    }


def test_it_prepares_raw_logs(environment: Path, tmp_path: Path) -> None:
    assert "prepare" in run_there(environment, tmp_path, "passerelle", "--help")
    logs = write_raw_logs(tmp_path / "logs", num_users=30)
    report = run_there(
        environment,
        tmp_path,
        "passerelle",
        "prepare",
        str(logs),
        "--out",
        str(tmp_path / "dataset"),
        "--json",
    )
    assert json.loads(report)["name"] == "ring"
    assert (tmp_path / "dataset" / "manifest.json").is_file()
