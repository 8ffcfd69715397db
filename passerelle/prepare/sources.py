"""Find a data set's files: where the user says, where data usually lies, or at the owner's."""

import glob
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from passerelle.errors import UserError
from passerelle.files import cache_directory, new_directory, sha256_of
from passerelle.prepare.config import PrepareConfig, SourceConfig
from passerelle.prepare.readers.streams import COMPRESSED_SUFFIXES
from passerelle.progress import Progress, silent

_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 30


def resolve_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Returns the files that match names or globs, in the order of the patterns, then by name.

    `x.csv` stands for `x.csv.gz` and other compressed files too.
    A folder stands for the files in it, as Spark writes them: those whose names begin with `_` or `.` are not
    data.

    Args:
        folder: the folder that names and globs are relative to.

    Raises:
        UserError: a pattern finds nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        plain = _uncompressed(pattern)
        matches = {path for suffix in ("", *COMPRESSED_SUFFIXES) for path in _glob(folder, plain + suffix)}
        # the same file twice, packed and unpacked, is one file
        unpacked = [
            path
            for path in sorted(matches)
            if _uncompressed(str(path)) == str(path) or Path(_uncompressed(str(path))) not in matches
        ]
        if not unpacked:
            raise UserError(f"{folder}: no file {plain} or {plain}.gz; {_what_there_is(folder, plain)}")
        found.update(dict.fromkeys(unpacked))
    return list(found)


def _uncompressed(name: str) -> str:
    suffix = next((each for each in COMPRESSED_SUFFIXES if name.endswith(each)), "")
    return name.removesuffix(suffix)


def _what_there_is(folder: Path, pattern: str) -> str:
    if (folder / pattern).is_dir():
        return f"{pattern} is a folder without files"
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not held:
        return "it is empty or not a folder"
    return f"it holds {', '.join(held[:12])}{' ...' if len(held) > 12 else ''}"


def _glob(folder: Path, pattern: str) -> Iterator[Path]:
    if not (folder / pattern).exists() and any(sign in pattern for sign in "*?["):
        # An absolute pattern replaces the folder, as an absolute name does.
        below = pattern if Path(pattern).is_absolute() else f"{glob.escape(str(folder))}/{pattern}"
        paths = map(Path, glob.iglob(below, recursive=True))  # noqa: PTH207 (takes no absolute one)
    else:
        paths = map(Path, [folder / pattern])
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (
                file for file in path.rglob("*") if file.is_file() and _is_data(file.relative_to(path))
            )


def _is_data(path: Path) -> bool:
    """Returns whether neither the name of a file nor that of one of its folders marks it as no data."""
    return not any(part.startswith(("_", ".")) for part in path.parts)


def _holds(folder: Path, config: PrepareConfig) -> bool:
    try:
        for table in (*config.events, config.items, config.users):
            resolve_files(folder, table.files)
    except UserError:
        return False
    return True


def _folders(source: SourceConfig) -> list[Path]:
    given = os.environ.get("PASSERELLE_DATA")
    named = [Path(given) / source.folder, Path(given)] if given else []
    return [*named, Path("../shared/data") / source.folder, cache_directory() / source.folder]


def local_source(config: PrepareConfig) -> Path | None:
    """Returns the folder of a preset's files on this machine; None when they would have to be downloaded."""
    assert config.source is not None
    return next((folder for folder in _folders(config.source) if _holds(folder, config)), None)


def find_source(
    config: PrepareConfig, explicit: Path | None, beside: Path | None = None, progress: Progress = silent
) -> Path:
    """Returns the folder that holds the files of a configuration.

    Looks at `explicit`; else `$PASSERELLE_DATA/<folder>`, `$PASSERELLE_DATA`, `../shared/data/<folder>`, the
    cache; else downloads, where the archive's checksum is known.
    A configuration without `[source]` reads `beside`, the folder of its TOML file.

    Raises:
        UserError: the files are nowhere; says where to get them.
    """
    if explicit is not None:
        if not explicit.is_dir():
            raise UserError(
                f"{explicit}: no such folder; --source takes the folder that holds {_wanted(config)}"
            )
        return explicit
    if config.source is None:
        if beside is None:
            raise UserError(f"{config.name}: pass --source, the folder that holds {_wanted(config)}")
        return beside
    local = local_source(config)
    if local is not None:
        return local
    if config.source.url is None:
        raise UserError(
            f"{config.name}: no {_wanted(config)} in {', '.join(map(str, _folders(config.source)))}: get "
            f"them at {config.source.page} "
            f"({config.source.instructions}) and pass their folder with --source"
        )
    return _download(config, config.source, cache_directory() / config.source.folder, progress)


def _wanted(config: PrepareConfig) -> str:
    return ", ".join(name for table in (*config.events, config.items, config.users) for name in table.files)


def _download(config: PrepareConfig, source: SourceConfig, folder: Path, progress: Progress) -> Path:
    assert source.url is not None
    remedy = f"get it at {source.page} ({source.instructions}) and pass its folder with --source"
    archive = folder.with_name(f".{source.folder}.{os.getpid()}.zip")
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(source.url, archive, progress)
        if sha256_of(archive) != source.sha256:
            raise UserError(
                f"{source.url}: the archive's SHA-256 is not the known one, it was not used: {remedy}"
            )
        with new_directory(folder, overwrite=True) as scratch:
            _unpack(archive, scratch)
            if not _holds(scratch, config):
                raise UserError(f"{source.url}: the archive does not hold {_wanted(config)}: {remedy}")
    except (urllib.error.URLError, TimeoutError, ConnectionError, zipfile.BadZipFile) as error:
        raise UserError(f"{source.url}: cannot be downloaded ({error}): {remedy}") from None
    finally:
        archive.unlink(missing_ok=True)
    return folder


def _fetch(url: str, target: Path, progress: Progress) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, target.open("wb") as sink:
        total = int(answer.headers.get("Content-Length") or 0)
        done = 0
        while chunk := answer.read(_CHUNK_BYTES):
            sink.write(chunk)
            done += len(chunk)
            progress("download (kB)", done // 1000, max(total, done) // 1000)
        if done < total:
            raise urllib.error.ContentTooShortError(f"{done} of {total} bytes came", None)  # type: ignore[arg-type]


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive's files into one folder, without the folders inside it,
    so that no name leads outside.
    """
    with zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            name = PurePosixPath(member.filename).name
            if member.is_dir() or not name:
                continue
            with members.open(member) as packed, (folder / name).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
