"""The Python files of the packages and their syntax trees, for tests of the house rules."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("passerelle", "training", "serving", "ray_cluster", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def relative(path: Path) -> str:
    """Returns a path as written from the root of the repository."""
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """Returns the dotted name under which a file is imported."""
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_packages(path: Path) -> set[str]:
    """Returns the top-level packages that a file's import statements name, wherever they stand."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found
