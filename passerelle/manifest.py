"""The manifest every directory on disk carries: who wrote it, with what, and the checksum of each file."""

import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self, TypeVar

from passerelle.config import Config, validate
from passerelle.errors import UserError
from passerelle.files import sha256_of, write_text

MANIFEST_NAME = "manifest.json"


class FileEntry(Config):
    """Checksum of one file."""

    sha256: str
    size_bytes: int


class Manifest(Config):
    """Fields common to datasets, runs and bundles."""

    KIND: ClassVar[str]
    FORMAT_VERSION: ClassVar[int] = 1
    MADE_BY: ClassVar[str]

    kind: str
    format_version: int
    created_at: str
    git_commit: str | None
    libraries: dict[str, str]
    files: dict[str, FileEntry]

    def updated(self, **changes: object) -> Self:
        """Returns a copy with some fields changed, validated again."""
        return type(self).model_validate({**self.model_dump(), **changes})


M = TypeVar("M", bound=Manifest)


def path_inside(directory: Path, name: str) -> Path:
    """Returns the path of a file that a manifest names.

    Raises:
        UserError: it does not lie in the manifest's own directory.
    """
    path = directory / name
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or not path.resolve().is_relative_to(directory.resolve()):
        raise UserError(
            f"{directory / MANIFEST_NAME}: names the file {name!r}, which is not inside {directory}"
        )
    return path


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Returns the installed version of each library, by name."""
    return {name: metadata.version(name) for name in names}


def provenance(
    model: type[Manifest], directory: Path, files: Sequence[str], libraries: Sequence[str]
) -> dict[str, Any]:
    """Returns the common fields for a directory whose `files` are already written."""
    return {
        "kind": model.KIND,
        "format_version": model.FORMAT_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "libraries": library_versions(libraries),
        "files": {
            name: {"sha256": sha256_of(directory / name), "size_bytes": (directory / name).stat().st_size}
            for name in files
        },
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout this code runs from, `+dirty` when files
    differ; None outside a checkout.
    """
    here = Path(__file__).parent
    # An installed package may lie inside a repository that is not ours.
    if not (here.parent / "pyproject.toml").is_file():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+dirty" if status.strip() else "")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write (or atomically replace) the manifest of a directory."""
    write_text(directory / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def kind_of(directory: Path) -> str:
    """Returns the kind of a directory: `dataset`, `run` or `bundle`.

    Raises:
        UserError: no readable manifest there.
    """
    return str(_read(directory, "dataset, run or bundle").get("kind"))


def open_manifest(directory: Path, model: type[M], *, verify: bool = True) -> M:
    """Read a directory's manifest and, with `verify`, the size and SHA-256 of every file it names.

    Raises:
        UserError: one sentence saying which file is missing, truncated or altered, and what makes it anew.
    """
    values = _read(directory, model.KIND)
    where = directory / MANIFEST_NAME
    if values.get("kind") != model.KIND:
        raise UserError(f"{directory} is a {values.get('kind')}, not a {model.KIND}")
    version = values.get("format_version")
    if version != model.FORMAT_VERSION:
        raise UserError(
            f"{where}: format {version}, this code reads {model.FORMAT_VERSION}: make it again with "
            f"`{model.MADE_BY}`"
        )
    manifest = validate(model, values, str(where))
    for name, entry in manifest.files.items():
        _check_file(path_inside(directory, name), entry, model.KIND, model.MADE_BY, verify=verify)
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """Returns a manifest of any kind as plain values, with its files verified, for tools that only report.

    Raises:
        UserError: as `open_manifest`.
    """
    values = _read(directory, "dataset, run or bundle")
    files = values.get("files")
    if not isinstance(files, dict):
        raise UserError(f"{directory / MANIFEST_NAME}: names no files")
    for name, entry in files.items():
        checked = validate(FileEntry, entry, f"{directory / MANIFEST_NAME}: files.{name}")
        _check_file(
            path_inside(directory, name),
            checked,
            str(values.get("kind")),
            "the command that made it",
            verify=True,
        )
    return values


def _read(directory: Path, expected: str) -> dict[str, object]:
    where = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise UserError(f"{directory}: no such {expected}")
    try:
        values = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory} is not a {expected}: it has no {MANIFEST_NAME}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: unreadable ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(values).__name__}")
    return values


def _check_file(path: Path, entry: FileEntry, kind: str, made_by: str, *, verify: bool) -> None:
    remedy = f"copy it again or make it anew with `{made_by}`"
    if not path.is_file():
        raise UserError(f"{path}: missing from this {kind}: {remedy}")
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        raise UserError(f"{path}: {size_bytes} bytes where the manifest says {entry.size_bytes}: {remedy}")
    if verify and sha256_of(path) != entry.sha256:
        raise UserError(f"{path}: altered since it was written (SHA-256 differs from the manifest): {remedy}")
