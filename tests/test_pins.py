"""Pinned versions: what is imported is pinned, what is pinned is used, and the lock holds every direct pin."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

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
    base = {normal(name) for name in read_pins(ROOT / "requirements", ["base.txt"])}
    second_step = {normal(name) for name in read_pins(ROOT / "requirements", ["torchrec-cpu.txt"])}
    imported = distributions([path for path in FILES if path not in (PEER, *OF_EXTRAS)])
    assert {
        name: packages for name, packages in imported.items() if not packages & (base | second_step)
    } == {}
    used = set().union(*imported.values())
    assert base - used == set(NOT_IMPORTED_BY_US)


def test_extras_are_pinned_as_tests_have_them() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    dev = read_pins(ROOT / "requirements", ["dev.txt"])
    pinned = dict(pin.split("==") for pins in extras.values() for pin in pins)
    assert pinned.items() <= dev.items()
    assert {normal(name) for name in pinned} <= set().union(*distributions(list(OF_EXTRAS)).values())


def test_lock_holds_every_direct_pin() -> None:
    lock = {normal(name): version for name, version in read_pins(ROOT / "requirements", ["lock.txt"]).items()}
    direct = {
        normal(name): version
        for name, version in read_pins(ROOT / "requirements", ["base.txt", "dev.txt"]).items()
    }
    assert {name: version for name, version in direct.items() if lock.get(name) != version} == {}
    assert not [version for version in lock.values() if "+" in version], (
        "a local build suffix fits one machine only"
    )
    hatchling = re.search(r"hatchling==([\d.]+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert hatchling is not None
    assert hatchling[1] == lock["hatchling"]
