"""Files that change, vanish, become invalid and come back while they are served."""

import errno
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from passerelle.bundle import Bundle
from passerelle.errors import UserError
from serving.api.admission import read_keys
from serving.stages.rules import read_block_list
from serving.watched_file import MAX_CHANGED_CHECKS, WatchedFile
from tests.support.waiting import eventually, throughout

NEVER_S = 1000.0


def number_of(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError("no number") from None


class Disk:
    """Loads numbers, unless there is an obstacle."""

    def __init__(self) -> None:
        self.obstacle: Callable[[Path], None] | None = None
        self.tried = 0

    def load(self, path: Path) -> int:
        self.tried += 1
        if self.obstacle is not None:
            self.obstacle(path)
        return number_of(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "value").write_text("1", encoding="utf-8")
    return tmp_path / "value"


def replace(path: Path, text: str) -> None:
    """Replaces a file atomically."""
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def test_invalid_content_keeps_the_loaded_value(path: Path) -> None:
    watched = WatchedFile(path, number_of, poll_s=NEVER_S)
    for text, expected in (("2", 2), ("x", 2), ("33", 33)):
        path.write_text(text, encoding="utf-8")
        # At the first check the file may still be being written.
        watched.check()
        watched.check()
        assert watched.value == expected
    path.unlink()
    watched.check()
    watched.check()
    assert watched.value == 33, "a missing file changes nothing"
    watched.close()
    path.write_text("y", encoding="utf-8")
    with pytest.raises(UserError, match="no number"):
        WatchedFile(path, number_of)


def test_invalid_content_is_read_once(path: Path) -> None:
    disk = Disk()
    watched = WatchedFile(path, disk.load, poll_s=NEVER_S)
    replace(path, "x")
    for _ in range(10):
        watched.check()
    assert disk.tried == 2 and watched.value == 1


def vanished(path: Path) -> None:
    raise FileNotFoundError(errno.ENOENT, "gone", str(path))


def stale(path: Path) -> None:
    raise OSError(errno.ESTALE, "stale", str(path))


def stale_in_other_words(path: Path) -> None:
    try:
        stale(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def out_of_memory(path: Path) -> None:
    raise MemoryError(f"{path} is too large at the moment")


@pytest.mark.parametrize("obstacle", [vanished, stale, stale_in_other_words, out_of_memory])
def test_temporary_errors_are_retried_and_logged_once(
    path: Path, obstacle: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    watched = WatchedFile(path, disk.load, poll_s=0.01)
    disk.obstacle = obstacle
    replace(path, "22")
    with caplog.at_level(logging.ERROR):
        eventually(lambda: disk.tried > 5, "it is not tried again")
        assert watched.value == 1 and len(caplog.records) == 1
        disk.obstacle = None
        eventually(lambda: watched.value == 22, "what was in the way is gone")
    disk.tried = 0
    throughout(lambda: disk.tried == 0 and len(caplog.records) == 1, 0.1)
    watched.close()


def test_block_list_that_vanishes_while_it_is_opened_stays_in_force(
    bundle: Bundle, path: Path, tmp_path: Path
) -> None:
    """Five items are blocked and stay blocked; the same file is read when it is back."""
    ids = bundle.items.column("item_id").to_pylist()
    path.write_text("\n".join(map(str, ids[:5])), encoding="utf-8")
    vanishing = False

    def load(from_: Path) -> int:
        if vanishing:
            from_.rename(tmp_path / "aside")
        return len(read_block_list(from_, bundle.item_ids))

    watched = WatchedFile(path, load, poll_s=NEVER_S)
    vanishing = True
    replace(path, "\n".join(map(str, ids[:7])))
    for _ in range(5):
        watched.check()
        assert watched.value == 5
    assert not path.exists()
    vanishing = False
    (tmp_path / "aside").rename(path)
    watched.check()
    watched.check()
    assert watched.value == 7


def test_keys_are_read_again_after_a_temporary_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = WatchedFile(path, read_keys, poll_s=NEVER_S)
    replace(path, "new key")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", stale)
        for _ in range(3):
            watched.check()
    assert watched.value == (b"1",)
    watched.check()
    assert watched.value == (b"new key",)


def test_file_that_changes_at_every_check_is_read(path: Path) -> None:
    watched = WatchedFile(path, number_of, poll_s=NEVER_S)
    values = []
    for value in range(2, 2 + 3 * MAX_CHANGED_CHECKS):
        replace(path, str(value))
        watched.check()
        values.append(watched.value)
    in_force = [1, 1 + MAX_CHANGED_CHECKS, 1 + 2 * MAX_CHANGED_CHECKS]
    assert values == [
        *in_force[:1] * (MAX_CHANGED_CHECKS - 1),
        *in_force[1:2] * MAX_CHANGED_CHECKS,
        *in_force[2:] * MAX_CHANGED_CHECKS,
        1 + 3 * MAX_CHANGED_CHECKS,
    ]


@pytest.fixture
def restless(path: Path) -> Iterator[None]:
    """A writer that changes the file between any two checks."""
    stopped = threading.Event()

    def write() -> None:
        for value in itertools.count(2):
            if stopped.wait(0.005):
                return
            replace(path, str(value))

    writer = threading.Thread(target=write)
    writer.start()
    yield
    stopped.set()
    writer.join()


@pytest.mark.usefixtures("restless")
def test_file_that_changes_between_checks_is_read(path: Path) -> None:
    watched = WatchedFile(path, number_of, poll_s=0.1)
    first = watched.value
    eventually(lambda: watched.value > first, "it is never read")
    watched.close()


def test_thread_ends_with_the_watched_file(path: Path) -> None:
    path = path.rename(path.with_name("of its own"))
    watched = WatchedFile(path, number_of, poll_s=0.01)
    assert any(thread.name == "watch of its own" for thread in threading.enumerate())
    del watched
    eventually(
        lambda: all(thread.name != "watch of its own" for thread in threading.enumerate()),
        "the thread goes on",
    )


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_lost_keys_admit_nobody(path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """And the same file counts again when it is back."""
    watched = WatchedFile(path, read_keys, without=(), poll_s=NEVER_S)
    assert watched.value == (b"1",)
    if how == "emptied":
        replace(path, "")
    else:
        path.rename(path.with_suffix(".aside"))
    watched.check()
    watched.check()
    assert watched.value == ()
    assert "nothing of it is valid any more" in caplog.text
    if how == "emptied":
        replace(path, "1")
    else:
        path.with_suffix(".aside").rename(path)
    watched.check()
    watched.check()
    assert watched.value == (b"1",)
