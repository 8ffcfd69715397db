"""Files that are either whole or absent: write a temporary file, flush it to disk, rename it."""

import ctypes
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from passerelle.errors import UserError

_CHUNK_BYTES = 1 << 20
_FROM_HERE, _EXCHANGE = -100, 2
"""`AT_FDCWD` and `RENAME_EXCHANGE` of Linux's `renameat2`."""


def cache_directory() -> Path:
    """Returns the user's directory of what can be made or downloaded again; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "passerelle"


def sha256_of(path: Path, is_stopped: Callable[[], bool] = lambda: False) -> str:
    """Returns the hex SHA-256 of a file, read in chunks; of a part of it where it is stopped."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while not is_stopped() and (chunk := stream.read(_CHUNK_BYTES)):
            digest.update(chunk)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path to write, which replaces `path` when the block ends without an error.

    A reader sees the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield beside
        flush(beside)
        beside.replace(path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def unfinished_files(path: Path) -> list[Path]:
    """Returns what `new_file` left of `path` when it was killed; no process may be writing it now."""
    return sorted(path.parent.glob(f".{path.name}.*"))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (`new_file`)."""
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Check, before long work, that its result may be written to `path`.

    Raises:
        UserError: `path` already exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists: choose another --out, or pass --overwrite to replace it")


def replace_directory(new: Path, path: Path) -> None:
    """Moves a directory to `path`; what stands there becomes `new`.

    Whenever the process is killed, `path` is the old one or the new one, on file systems of Linux.
    Elsewhere there is a moment between two renames.
    """
    if not path.exists():
        new.rename(path)
    elif not exchange(new, path):
        replaced = new.with_name(f"{new.name}.replaced")
        path.rename(replaced)
        new.rename(path)
        replaced.rename(new)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step, and returns False where the system cannot.

    Raises:
        OSError: a path does not exist, or may not be renamed.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_FROM_HERE, os.fsencode(one), _FROM_HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(error, os.strerror(error), str(one), None, str(other))


@contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch directory that becomes `path` when the block ends without an error,
    and vanishes when it does not.

    Raises:
        UserError: `path` already exists and `overwrite` is false.
    """
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    scratch.mkdir()
    try:
        yield scratch
        for file in sorted(scratch.rglob("*")):
            if file.is_file():
                flush(file)
        flush(scratch)
        replace_directory(scratch, path)
        flush(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
