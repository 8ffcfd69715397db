"""What each package imports: the contract little, training no Ray, serving no torch, help nothing heavy."""

import ast
import subprocess
import sys

import pytest

from tests.support.source_tree import FILES, ROOT, TREES, imported_packages, module_name, relative

IMPORT_EACH = """
import importlib, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2].split(",")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
for module in modules:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(module, error.name)
heavy = {"torch", "ray", "pytorch_lightning", "lightgbm", "faiss", "tritonclient", "fastapi"}
heavy |= {"onnxruntime", "pandas"}
print("loaded", *sorted(heavy & set(sys.modules)))
"""


def import_each(modules: list[str], blocked: list[str]) -> tuple[dict[str, str], list[str]]:
    """Import each module in one fresh process without the blocked libraries.

    Returns:
        Module -> the library that it lacked, and the heavy libraries that were loaded.
    """
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_EACH, ",".join(blocked), ",".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *lacking, loaded = done.stdout.splitlines()
    return {line.split()[0]: line.split()[1].split(".")[0] for line in lacking}, loaded.split()[1:]


def modules_of(package: str) -> list[str]:
    # Triton itself runs its backends, with a module of its own beside them.
    return [
        module_name(path)
        for path in FILES
        if path.is_relative_to(ROOT / package) and "backend" not in path.parts
    ]


def imports_at_top(module: str) -> set[str]:
    """Modules that a module's own import statements name, without those in functions."""
    tree = next(tree for path, tree in TREES.items() if module_name(path) == module)
    plain = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}


CONTRACT = {"numpy", "pyarrow", "pydantic", "pydantic_core"}
HEAVY = [
    "torch",
    "pytorch_lightning",
    "ray",
    "torchrec",
    "tritonclient",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "faiss",
    "fastapi",
    "pandas",
]


def test_the_contract_needs_three_libraries() -> None:
    assert import_each(modules_of("passerelle"), [*HEAVY, "click", "rich", "psutil", "httpx"])[0] == {}
    named_by = {
        path: imported_packages(path) - CONTRACT - {"passerelle"} - set(sys.stdlib_module_names)
        for path in FILES
    }
    assert {
        relative(path): names
        for path, names in named_by.items()
        if path.is_relative_to(ROOT / "passerelle") and names
    } == {}


@pytest.mark.parametrize(
    ("package", "never", "in_one_file_each"),
    [
        ("training", ["ray", "faiss", "tritonclient", "fastapi"], ["torchrec", "lightgbm"]),
        ("serving", ["torch", "pytorch_lightning", "torchrec", "lightgbm"], []),
    ],
)
def test_package_imports_with_minimal_extras(
    package: str, never: list[str], in_one_file_each: list[str]
) -> None:
    """A package imports without the libraries that it must not need.

    Of those that one file owns, only that file and what is built on it may be lacking.
    """
    lacking, _ = import_each(modules_of(package), never + in_one_file_each)
    for library in in_one_file_each:
        lack = {module for module, name in lacking.items() if name == library}
        owners = {module for module in lack if library in imports_at_top(module)}
        assert len(owners) <= 1
        assert {module for module in lack - owners if not owners & imports_at_top(module)} == set()
    assert {module: name for module, name in lacking.items() if name not in in_one_file_each} == {}


def test_help_loads_nothing_heavy() -> None:
    assert import_each(modules_of("ray_cluster.cli".replace(".", "/")), ["nothing"]) == ({}, [])
