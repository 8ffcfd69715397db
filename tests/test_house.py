"""The house rules that no linter knows: sizes, docstrings, options that are read, help with examples, lean imports, pins in use."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ray_cluster.cli.main import VERBS, passerelle
from ray_cluster.doctor import read_pins

ROOT = Path(__file__).parent.parent
PACKAGES = ("passerelle", "training", "serving", "ray_cluster", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


# Sizes and docstrings


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_file_is_long(path: Path) -> None:
    limit = 120 if path.parent == ROOT / "ray_cluster" / "cli" else 300
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if named(path).startswith(("passerelle/", "training/", "serving/"))],
    ids=named,
)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = TREES[path]
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    ]
    assert not tree.body or ast.get_docstring(tree), f"{named(path)} has no docstring"
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
    """What a user sets must be read. A record, which our own code fills in for people and clients to read, must at least be filled in."""
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


# The command line


def help_of(verb: str) -> str:
    result = CliRunner().invoke(passerelle, [verb, "--help"], prog_name="passerelle", terminal_width=110)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_a_sentence_examples_and_described_options(verb: str) -> None:
    text = help_of(verb)
    usage, sentence = text.split("\n\n")[:2]
    assert usage.startswith(f"Usage: passerelle {verb} ")
    assert re.match(r"  [A-Z].*\.", sentence, re.DOTALL)
    assert re.search(rf"^ +passerelle {verb}\b", text, re.MULTILINE), "no example"
    command = passerelle.get_command(click.Context(passerelle), verb)
    assert command is not None
    assert [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ] == []


def test_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate_cli.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^## passerelle (\S+)$", page, re.MULTILINE) == list(VERBS)


# Imports

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
heavy = {"torch", "ray", "pytorch_lightning", "lightgbm", "faiss", "tritonclient", "fastapi", "onnxruntime", "pandas"}
print("loaded", *sorted(heavy & set(sys.modules)))
"""


def import_each(modules: list[str], blocked: list[str]) -> tuple[dict[str, str], list[str]]:
    """Module -> what it lacked, and the heavy libraries loaded, after importing each in one fresh process without the blocked ones."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_EACH, ",".join(blocked), ",".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *lacking, loaded = done.stdout.splitlines()
    return {line.split()[0]: line.split()[1].split(".")[0] for line in lacking}, loaded.split()[1:]


def modules_of(package: str) -> list[str]:
    # Triton itself runs its backends, with a module of its own beside them.
    return [
        module_of(path)
        for path in FILES
        if path.is_relative_to(ROOT / package) and "backend" not in path.parts
    ]


def imported_by(path: Path) -> set[str]:
    """Top-level packages a file names in import statements, wherever they stand."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def imports_at_top(module: str) -> set[str]:
    """Modules that a module's own import statements name, those inside functions and `if TYPE_CHECKING` left out."""
    tree = next(tree for path, tree in TREES.items() if module_of(path) == module)
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
        path: imported_by(path) - CONTRACT - {"passerelle"} - set(sys.stdlib_module_names) for path in FILES
    }
    assert {
        named(path): names
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
    """Without the libraries it must not need; and of those that one file owns, only that file and what is built on it."""
    lacking, _ = import_each(modules_of(package), never + in_one_file_each)
    for library in in_one_file_each:
        lack = {module for module, name in lacking.items() if name == library}
        owners = {module for module in lack if library in imports_at_top(module)}
        assert len(owners) <= 1
        assert {module for module in lack - owners if not owners & imports_at_top(module)} == set()
    assert {module: name for module, name in lacking.items() if name not in in_one_file_each} == {}


def test_help_loads_nothing_heavy() -> None:
    assert import_each(modules_of("ray_cluster.cli".replace(".", "/")), ["nothing"]) == ({}, [])


# Pins

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


def imported_packages(paths: list[Path]) -> dict[str, set[str]]:
    """Third-party import -> names of the packages that could provide it (`google` has several)."""
    known = importlib.metadata.packages_distributions()
    names = (
        set().union(*(imported_by(path) for path in paths))
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
    assert "rectools" in set().union(*imported_packages([PEER]).values()) & pins


def test_what_is_imported_is_pinned_and_what_is_pinned_is_used() -> None:
    base = {normal(name) for name in read_pins(ROOT / "requirements", ["base.txt"])}
    second_step = {normal(name) for name in read_pins(ROOT / "requirements", ["torchrec-cpu.txt"])}
    imported = imported_packages([path for path in FILES if path not in (PEER, *OF_EXTRAS)])
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
    assert {normal(name) for name in pinned} <= set().union(*imported_packages(list(OF_EXTRAS)).values())


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


# What must not be in the repository

MACHINE_PATHS = re.compile(r"/wor[k]/\w|/hom[e]/(?!ray\b)\w|/User[s]/\w|/roo[t]/\.|/tm[p]/bash|\.librar[y]/")


def test_no_tracked_file_names_somebodys_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    paths = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    assert len(paths) > 20
    texts = {path: path.read_bytes().decode("utf-8", errors="ignore") for path in paths}
    assert {
        named(path): found for path, text in texts.items() if (found := MACHINE_PATHS.findall(text))
    } == {}
