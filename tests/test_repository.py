"""Contents of the repository: text of moderate size without paths of one machine, tests that do not sleep."""

import ast
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.source_tree import ROOT, relative
from tests.support.worker_groups import SERVICE_FILES, files_of_the_service, group_of

MAX_BYTES = 1 << 20
MACHINE_PATHS = re.compile(r"/wor[k]/\w|/hom[e]/(?!ray\b)\w|/User[s]/\w|/roo[t]/\.|/tm[p]/bash|\.librar[y]/")
WAITING = ROOT / "tests" / "support" / "waiting.py"


@pytest.fixture(scope="module")
def tracked() -> dict[str, bytes]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert len(paths) > 20
    return {relative(path): path.read_bytes() for path in paths}


def is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        return False


def test_every_file_is_text_of_moderate_size(tracked: dict[str, bytes]) -> None:
    """Built wheels, models and data belong elsewhere."""
    assert [name for name, content in tracked.items() if not is_text(content)] == []
    assert [name for name, content in tracked.items() if len(content) > MAX_BYTES] == []


def test_what_is_no_text_is_found() -> None:
    assert is_text("é\n".encode())
    assert not is_text(b"PK\x03\x04\x00") and not is_text(b"\xff\xfe")


def test_no_file_names_a_machine_of_somebody(tracked: dict[str, bytes]) -> None:
    texts = {name: content.decode("utf-8", errors="ignore") for name, content in tracked.items()}
    assert {name: found for name, text in texts.items() if (found := MACHINE_PATHS.findall(text))} == {}


def sleeps(source: str) -> Iterator[int]:
    """Lines that call a `sleep` of `time` or `asyncio`, in code that a string holds as well."""
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "sleep") or (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and "time.sleep(" in node.value
        ):
            yield node.lineno


def test_tests_poll_conditions_and_do_not_sleep() -> None:
    """A fixed time that is long enough on a quiet machine fails on a busy one."""
    files = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != WAITING]
    files.remove(ROOT / "tests" / "test_repository.py")
    found = {relative(path): list(sleeps(path.read_text(encoding="utf-8"))) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert list(sleeps(WAITING.read_text(encoding="utf-8")))


def test_files_of_the_service_are_one_group(request: pytest.FixtureRequest) -> None:
    """Otherwise each worker starts a service of its own."""
    assert files_of_the_service(request.session.items) <= SERVICE_FILES
    assert {group_of(f"{file}::test") for file in SERVICE_FILES} == {"service"}
    assert group_of("tests/test_docs.py::test[a::b]") == "tests/test_docs.py"
