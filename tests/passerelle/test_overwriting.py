"""A directory that is overwritten is the old one or the new one, whenever the process is killed."""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from passerelle import files
from passerelle.files import exchange, new_directory
from tests.support.kills import fork, kill_within, seconds_of


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def write(path: Path, text: str) -> None:
    with new_directory(path, overwrite=True) as scratch:
        for number in range(3):
            (scratch / "inside").mkdir(exist_ok=True)
            (scratch / "inside" / str(number)).write_text(text)


def whole(text: str) -> dict[str, str]:
    return {f"inside/{number}": text for number in range(3)}


def calls_of_the_system(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Calls `before` before and after each call that changes a name or flushes."""

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*arguments: Any, **options: Any) -> Any:
            before()
            found = call(*arguments, **options)
            before()
            return found

        return watching

    for place, name in ((Path, "rename"), (files, "flush"), (files, "exchange"), (files.shutil, "rmtree")):
        monkeypatch.setattr(place, name, watched(getattr(place, name)))


@pytest.mark.parametrize("old", ["old", None])
def test_killed_between_any_two_calls_it_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None
) -> None:
    seen = set()
    for last_call in itertools.count():
        path = tmp_path / str(last_call) / "made"
        if old is not None:
            write(path, old)
        calls = itertools.count()

        def die(calls: Iterator[int] = calls, last_call: int = last_call) -> None:
            if next(calls) == last_call:
                os._exit(7)

        with monkeypatch.context() as patched:
            calls_of_the_system(patched, die)
            status = os.waitstatus_to_exitcode(os.waitpid(fork(lambda path=path: write(path, "new")), 0)[1])
        now = contents(path)
        assert now in ([whole("old"), whole("new")] if old else [{}, whole("new")]), last_call
        seen.add(next(iter(now.values()), None))
        write(path, "next")
        assert contents(path) == whole("next")
        if status == 0:
            break
        assert status == 7
    assert last_call > 8 and seen == {old, "new"}


def test_killed_at_any_moment_it_is_the_old_or_the_new(tmp_path: Path) -> None:
    path, rng, texts = tmp_path / "made", random.Random(0), itertools.count()
    write(path, "start")
    duration_s = seconds_of(lambda: write(path, "start"))
    before, num_killed = "start", 0
    for _ in range(50):
        new = str(next(texts))
        num_killed += kill_within(lambda new=new: write(path, new), 1.2 * duration_s, rng)
        found = contents(path)
        assert found in (whole(before), whole(new))
        before = found["inside/0"]
    assert num_killed > 0


def test_paths_are_exchanged(tmp_path: Path) -> None:
    one, other = tmp_path / "one é", tmp_path / "other"
    one.mkdir()
    other.write_text("file")
    if not exchange(one, other):
        pytest.skip("the file system of temporary files exchanges nothing")
    assert one.read_text() == "file" and other.is_dir()
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "absent")


def test_without_an_exchange_the_directory_is_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "exchange", lambda *_: False)
    for text in ("one", "two"):
        write(tmp_path / "made", text)
    assert contents(tmp_path / "made") == whole("two")
    assert [each.name for each in tmp_path.iterdir()] == ["made"]
