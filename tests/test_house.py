"""House rules that no linter knows: file sizes, docstrings, signatures, options that are read."""

import ast
from pathlib import Path

import pytest

from tests.support.source_tree import FILES, ROOT, TREES, relative

# Sizes and docstrings


MAX_LINES, MAX_ENTRY_POINT_LINES, MAX_PARAMETERS = 300, 120, 7
TESTS_AND_DOCS = sorted(path for folder in ("tests", "docs") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", [*FILES, *TESTS_AND_DOCS], ids=relative)
def test_no_file_is_long(path: Path) -> None:
    limit = MAX_ENTRY_POINT_LINES if path.parent == ROOT / "ray_cluster" / "cli" else MAX_LINES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def test_no_signature_is_long() -> None:
    """Commands of the command line are exempt: click passes one parameter an option."""
    long = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = {
                    argument.arg
                    for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                }
                is_command = any(
                    ast.unparse(decorator).startswith("click.") for decorator in node.decorator_list
                )
                if len(names - {"self", "cls"}) > MAX_PARAMETERS and not is_command:
                    long[f"{relative(path)}:{node.lineno} {node.name}"] = len(names)
    assert long == {}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if relative(path).startswith(("passerelle/", "training/", "serving/"))],
    ids=relative,
)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = TREES[path]
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    ]
    assert not tree.body or ast.get_docstring(tree), f"{relative(path)} has no docstring"
    assert [node.name for node in public if not ast.get_docstring(node)] == []


# Options

FILLED_IN_BY_FASTAPI = {"Problem"}


def config_fields() -> dict[str, set[str]]:
    """Class -> fields of everything derived from `Config`, found by name."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {
        node.name: {ast.unparse(base).split(".")[-1].split("[")[0] for base in node.bases} for node in classes
    }
    derived = {"Config"}
    while found := {name for name, parents in bases.items() if parents & derived} - derived:
        derived |= found
    return {
        node.name: {
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and "ClassVar" not in ast.unparse(item.annotation)
        }
        for node in classes
        if node.name in derived - {"Config"}
    }


def test_every_option_is_read() -> None:
    """What a user sets must be read.

    A record, which our own code fills in for people and clients, must at least be filled in.
    """
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    filled = {keyword.arg for call in calls for keyword in call.keywords}
    filled |= {
        key.value
        for node in nodes
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    records = {call.func.id for call in calls if isinstance(call.func, ast.Name) and call.keywords}
    options = config_fields()
    assert len(options) > 5
    dead = {
        name: fields - read - (filled if name in records or name.endswith("Manifest") else set())
        for name, fields in options.items()
        if name not in FILLED_IN_BY_FASTAPI
    }
    assert {name: sorted(fields) for name, fields in dead.items() if fields} == {}
