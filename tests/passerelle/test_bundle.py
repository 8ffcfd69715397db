"""A bundle opens whole or not at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from passerelle.bundle import BUNDLE_FILES, Bundle, BundleManifest, open_bundle
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.manifest import open_manifest, write_manifest
from tests.support.files import flip_byte


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


def test_rows_and_ids_agree(bundle: Bundle) -> None:
    assert bundle.vectors_RD.shape == (302, 64) and bundle.vectors_RD.dtype == np.float32
    assert not bundle.vectors_RD[:FIRST_ITEM_ROW].any() and not bundle.counts_R[:FIRST_ITEM_ROW].any()
    assert bundle.item_ids.ids(np.array([FIRST_ITEM_ROW, FIRST_ITEM_ROW + 4])) == [7, 47]
    assert bundle.item_ids.row(47) == FIRST_ITEM_ROW + 4
    assert bundle.user_ids.row(1003) == 3 and bundle.user_ids.row(999) == -1


def test_string_ids_come_back_as_they_went_in(unicode_bundle: Bundle) -> None:
    ids = ["商品 0", "item-é1"]
    assert unicode_bundle.item_ids.ids(unicode_bundle.item_ids.rows(ids)) == ids
    assert unicode_bundle.user_ids.row("usér 7") == 7


def test_history_is_oldest_first(bundle: Bundle) -> None:
    stored = [column[5].as_py() for column in bundle.histories]
    found = bundle.history(5)
    assert [values_L.tolist() for values_L in found] == stored and all(
        values_L.dtype == np.int64 for values_L in found
    )
    assert found.timestamps_ms_L.tolist() == sorted(found.timestamps_ms_L.tolist()) and set(
        found.event_types_L.tolist()
    ) == {0}
    assert 1 <= len(found.item_rows_L) <= bundle.manifest.max_history


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_one_altered_byte_is_found(copy: Path, name: str) -> None:
    flip_byte(copy / name, (copy / name).stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{name}: altered since it was written"):
        open_bundle(copy)


def test_truncation_is_found_even_without_checksums(copy: Path) -> None:
    path = copy / "item_vectors.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"item_vectors\.npy: \d+ bytes where the manifest says \d+: .*`passerelle export`"
    ):
        open_bundle(copy, verify=False)


def test_missing_file(copy: Path) -> None:
    (copy / "ranker.onnx").unlink()
    with pytest.raises(UserError, match=r"ranker\.onnx: missing from this bundle"):
        open_bundle(copy)


def test_manifest_must_name_every_file(copy: Path) -> None:
    manifest = open_manifest(copy, BundleManifest)
    write_manifest(
        copy,
        manifest.updated(
            files={name: entry for name, entry in manifest.files.items() if name != "ranker.onnx"}
        ),
    )
    with pytest.raises(UserError, match=r"the manifest does not name ranker\.onnx"):
        open_bundle(copy)


def test_vectors_must_have_the_shape_of_the_manifest(copy: Path) -> None:
    write_manifest(copy, open_manifest(copy, BundleManifest).updated(dim=32))
    with pytest.raises(
        UserError, match=r"item_vectors\.npy: shape \(302, 64\), the manifest says \(302, 32\)"
    ):
        open_bundle(copy)


def test_unknown_manifest_key(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_histroy": 3}))
    with pytest.raises(UserError, match=r"max_histroy: unknown key; did you mean max_history\?"):
        open_bundle(copy)


def test_a_dataset_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "dataset"}')
    with pytest.raises(UserError, match="is a dataset, not a bundle"):
        open_bundle(tmp_path)
