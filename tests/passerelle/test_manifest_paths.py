"""Manifests name files of their own directory alone."""

import json
from pathlib import Path

import pytest

from passerelle.errors import UserError
from passerelle.manifest import MANIFEST_NAME, path_inside, read_manifest


def test_paths_inside(tmp_path: Path) -> None:
    assert path_inside(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"
    assert path_inside(tmp_path, "./a") == tmp_path / "a"
    assert path_inside(tmp_path, "..a") == tmp_path / "..a"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "..", "a/../b"])
def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"manifest\.json: names the file {name!r}, which is not inside"):
        path_inside(tmp_path, name)


def test_links_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "outside").write_text("x")
    (tmp_path / "own" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="names the file 'link', which is not inside"):
        path_inside(tmp_path / "own", "link")


def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    own = tmp_path / "own"
    own.mkdir()
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    (own / MANIFEST_NAME).write_text(json.dumps({"kind": "bundle", "files": {"../x": entry}}))
    with pytest.raises(UserError, match=r"names the file '\.\./x', which is not inside"):
        read_manifest(own)
