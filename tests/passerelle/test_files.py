"""Files and directories are whole or absent; manifests and checksums tell when they are not."""

import hashlib
import json
import os
from pathlib import Path
from typing import ClassVar

import pytest

from passerelle.errors import UserError
from passerelle.files import new_directory, refuse_existing, sha256_of, write_text
from passerelle.manifest import (
    MANIFEST_NAME,
    Manifest,
    git_commit,
    kind_of,
    open_manifest,
    provenance,
    read_manifest,
    write_manifest,
)


class Parcel(Manifest):
    """A manifest of our own."""

    KIND: ClassVar[str] = "parcel"
    MADE_BY: ClassVar[str] = "passerelle wrap"
    weight_g: int


def test_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_write_text_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "note.txt"
    write_text(path, "one")
    write_text(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert [each.name for each in path.parent.iterdir()] == ["note.txt"]


def test_new_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_directory(target) as scratch:
        (scratch / "file").write_text("x")
        assert not target.exists()
        assert scratch.parent == target.parent  # the same file system, so that the rename is one step
    assert (target / "file").read_text() == "x"
    assert [each.name for each in target.parent.iterdir()] == ["b"]


def test_new_directory_vanishes_when_the_work_fails(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(FileNotFoundError), new_directory(target, overwrite=True) as scratch:
        (scratch / "file").write_bytes((tmp_path / "gone").read_bytes())
    assert [each.name for each in tmp_path.iterdir()] == ["b"]
    assert [each.name for each in target.iterdir()] == ["old"]


def test_new_directory_replaces_only_when_told(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "old").write_text("old")
    with (
        pytest.raises(UserError, match=r"b already exists: choose another --out, or pass --overwrite"),
        new_directory(target),
    ):
        pass
    with pytest.raises(UserError, match="already exists"):
        refuse_existing(target, overwrite=False)
    refuse_existing(target, overwrite=True)
    refuse_existing(tmp_path / "c", overwrite=False)
    with new_directory(target, overwrite=True) as scratch:
        (scratch / "new").write_text("new")
    assert [each.name for each in target.iterdir()] == ["new"]
    assert [each.name for each in tmp_path.iterdir()] == ["b"]


@pytest.fixture
def parcel(tmp_path: Path) -> Path:
    folder = tmp_path / "parcel"
    folder.mkdir()
    (folder / "content").write_bytes(b"abc")
    common = provenance(Parcel, folder, ["content"], libraries=["numpy"])
    write_manifest(folder, Parcel.model_validate({**common, "weight_g": 5}))
    return folder


def test_manifest_comes_back(parcel: Path) -> None:
    manifest = open_manifest(parcel, Parcel)
    assert manifest.weight_g == 5
    assert manifest.files["content"].size_bytes == 3
    assert manifest.files["content"].sha256 == hashlib.sha256(b"abc").hexdigest()
    assert set(manifest.libraries) == {"numpy"}
    assert manifest.git_commit == git_commit()
    assert kind_of(parcel) == "parcel"
    assert read_manifest(parcel) == manifest.model_dump(mode="json")
    write_manifest(parcel, manifest.updated(weight_g=6))
    assert open_manifest(parcel, Parcel).weight_g == 6
    with pytest.raises(ValueError, match="weight_g"):
        manifest.updated(weight_g="heavy")


def change(parcel: Path, **values: object) -> None:
    path = parcel / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_one_altered_byte(parcel: Path) -> None:
    (parcel / "content").write_bytes(b"abd")
    message = (
        r"content: altered since it was written \(SHA-256 differs from the manifest\): "
        "copy it again or make it anew with"
    )
    with pytest.raises(UserError, match=f"{message} `passerelle wrap`$"):
        open_manifest(parcel, Parcel)
    with pytest.raises(UserError, match=f"{message} `the command that made it`$"):
        read_manifest(parcel)
    assert open_manifest(parcel, Parcel, verify=False).weight_g == 5


def test_truncated_and_missing_files(parcel: Path) -> None:
    (parcel / "content").write_bytes(b"ab")
    with pytest.raises(UserError, match=r"content: 2 bytes where the manifest says 3: copy it again"):
        open_manifest(parcel, Parcel, verify=False)
    (parcel / "content").unlink()
    with pytest.raises(UserError, match=r"content: missing from this parcel: copy it again"):
        open_manifest(parcel, Parcel, verify=False)


def test_what_is_not_a_manifest(parcel: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such parcel$"):
        open_manifest(tmp_path / "gone", Parcel)
    with pytest.raises(UserError, match=r"is not a parcel: it has no manifest\.json$"):
        open_manifest(tmp_path, Parcel)
    with pytest.raises(UserError, match=r"no such dataset, run or bundle$"):
        kind_of(tmp_path / "gone")
    change(parcel, kind="bundle")
    with pytest.raises(UserError, match=r"parcel is a bundle, not a parcel$"):
        open_manifest(parcel, Parcel)
    change(parcel, kind="parcel", format_version=9)
    with pytest.raises(
        UserError, match=r"format 9, this code reads 1: make it again with `passerelle wrap`$"
    ):
        open_manifest(parcel, Parcel)
    change(parcel, format_version=1, colour="red")
    with pytest.raises(UserError, match=r"colour: unknown key"):
        open_manifest(parcel, Parcel)
    change(parcel, files=[])
    with pytest.raises(UserError, match=r"names no files$"):
        read_manifest(parcel)
    for text, message in (("[]", "expected a JSON object, got list"), ("{", "unreadable")):
        (parcel / MANIFEST_NAME).write_text(text)
        with pytest.raises(UserError, match=message):
            open_manifest(parcel, Parcel)
