"""Pinned versions: imports are pinned, pins are used, and the lock holds every direct pin."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from ray_cluster.doctor import read_pins
from tests.support.source_tree import FILES, PACKAGES, ROOT, imported_packages

NOT_IMPORTED_BY_US = {
    "onnxscript": "torch.onnx.export writes through it",
    "tensorboard": "Lightning's logger writes with it",
    "tensordict": "torchrec needs it",
    "pyre-extensions": "torchrec needs it",
    "tqdm": "torchrec needs it",
    "torchmetrics": "torchrec needs it",
}
LOCAL_ONLY = {"triton_python_backend_utils"}  # the Triton server puts it beside its backends


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(paths: list[Path]) -> dict[str, set[str]]:
    """Third-party import -> names of the packages that could provide it (`google` has several)."""
    known = importlib.metadata.packages_distributions()
    names = (
        set().union(*(imported_packages(path) for path in paths))
        - set(sys.stdlib_module_names)
        - set(PACKAGES)
        - LOCAL_ONLY
        - {""}
    )
    return {name: {normal(package) for package in known.get(name, [name])} for name in names}


PEER = ROOT / "benchmarks" / "peer_rectools.py"
OF_EXTRAS = (
    ROOT / "training" / "text.py",
    ROOT / "serving" / "events" / "redis_store.py",
    ROOT / "serving" / "observability" / "tracing.py",
)


def test_a_peer_is_pinned_in_an_environment_of_its_own() -> None:
    pins = {normal(name.partition("[")[0]) for name in read_pins(ROOT / "requirements", ["peers.txt"])}
    assert "rectools" in set().union(*distributions([PEER]).values()) & pins


def test_what_is_imported_is_pinned_and_what_is_pinned_is_used() -> None:
    base = {normal(name) for name in read_pins(ROOT / "requirements", ["base.txt", "torch.txt"])}
    second_step = {normal(name) for name in read_pins(ROOT / "requirements", ["torchrec-cpu.txt"])}
    imported = distributions([path for path in FILES if path not in (PEER, *OF_EXTRAS)])
    assert {
        name: packages for name, packages in imported.items() if not packages & (base | second_step)
    } == {}
    used = set().union(*imported.values())
    assert base - used == set(NOT_IMPORTED_BY_US)


def declared() -> dict[str, dict[str, Requirement]]:
    """Extra -> package -> what pyproject.toml asks for; "" is what is always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {normal(one.name): one for one in map(Requirement, lines) if one.name != "passerelle"}
        for extra, lines in lists.items()
    }


def pinned(*names: str) -> dict[str, str]:
    return {normal(name): version for name, version in read_pins(ROOT / "requirements", names).items()}


def test_what_the_package_declares_is_what_is_pinned_and_tested() -> None:
    """Every declared package is pinned, its range holds the pin, and begins there."""
    pins = pinned("base.txt", "torch.txt", "dev.txt")
    for extra, requirements in declared().items():
        for name, requirement in requirements.items():
            assert requirement.specifier.contains(pins[name]), (extra, name)
            assert all(
                bound.version == pins[name] for bound in requirement.specifier if bound.operator == ">="
            ), (extra, name, pins[name])


def test_every_pin_is_declared() -> None:
    lists = declared()
    assert set(lists) == {"", "train", "serve", "text", "redis", "otel", "dev"}
    runtime = {name for extra in ("", "train", "serve") for name in lists[extra]}
    assert set(pinned("base.txt", "torch.txt")) == runtime | {"uvloop"}
    of_extras = {name for extra in ("text", "redis", "otel") for name in lists[extra]}
    assert of_extras <= set().union(*distributions(list(OF_EXTRAS)).values())
    assert set(pinned("dev.txt")) == (of_extras | set(lists["dev"])) - {"uvloop"} | {"async-timeout"}


def test_the_contract_needs_no_extra() -> None:
    files = [path for path in FILES if path.is_relative_to(ROOT / "passerelle")]
    assert set(declared()[""]) >= set().union(*distributions(files).values()) - {"pydantic-core"}


def test_lock_holds_every_direct_pin() -> None:
    lock, direct = pinned("lock.txt"), pinned("base.txt", "dev.txt")
    assert {name: version for name, version in direct.items() if lock.get(name) != version} == {}
    assert not [version for version in lock.values() if "+" in version], (
        "a local build suffix fits one machine only"
    )
    hatchling = re.search(r"hatchling==([\d.]+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert hatchling is not None
    assert hatchling[1] == lock["hatchling"]


def test_every_locked_file_has_a_hash() -> None:
    for name in ("lock.txt", "torchrec-cpu.txt", "torchrec-cuda.txt"):
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", "")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert lines and all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lines), name
    assert "torch" not in pinned("lock.txt"), "its file differs by flavour"
