"""Publishing: a real Triton and a real Serve graph stand at the gate."""

import asyncio
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passerelle.bundle import REFERENCE, Bundle, BundleManifest, open_bundle, write_reference
from passerelle.errors import UserError
from passerelle.files import sha256_of
from passerelle.manifest import FileEntry, open_manifest, write_manifest
from passerelle.progress import silent
from ray_cluster.networks import Networks
from ray_cluster.parity import http_parity, triton_parity
from ray_cluster.publishing import publish, published_version, read_published
from ray_cluster.service import EVENTS_NAME
from tests.support.bundles import Shape, build_bundle
from tests.support.files import flip_byte


def with_reference(bundle: Bundle, path: Path, field: str, change: Any) -> Bundle:
    """An intact copy of a bundle under another id, in which training's answers are others."""
    shutil.copytree(bundle.path, path)
    users = [user._replace(**{field: change(getattr(user, field))}) for user in bundle.reference().users()]
    write_reference(path, users, bundle.user_ids.type)
    manifest = bundle.manifest
    entry = FileEntry(sha256=sha256_of(path / REFERENCE), size_bytes=(path / REFERENCE).stat().st_size)
    write_manifest(
        path, manifest.updated(bundle_id=f"other {field}", files={**manifest.files, REFERENCE: entry})
    )
    return open_bundle(path)


def test_first_publication(publication: dict[str, Any], repository: Path, bundle: Bundle) -> None:
    assert publication["version"] == 1 and publication["bundle_id"] == bundle.manifest.bundle_id
    published = read_published(repository)
    assert published.active == 1 and published.versions[1].bundle == str(bundle.path)
    for model in ("query_encoder", "ranker"):
        assert (
            sha256_of(repository / model / "1" / "model.onnx")
            == bundle.manifest.files[f"{model}.onnx"].sha256
        )
    names = sorted(path.name for path in repository.iterdir() if not path.name.startswith(EVENTS_NAME))
    assert names == ["published.json", "query_encoder", "ranker"]
    assert published_version(bundle, repository) == 1


def test_parity_is_written_into_the_manifest(publication: dict[str, Any], bundle: Bundle) -> None:
    parity = open_manifest(bundle.path, BundleManifest).parity
    assert parity == publication["parity"] and set(parity) == {"triton", "http"}
    for figures in parity.values():
        assert figures["users"] == figures["identical_top_10"] == 20
        assert all(value <= 1e-4 for name, value in figures.items() if name.startswith("max_"))


def test_the_same_bundle_keeps_its_version(
    publication: dict[str, Any], repository: Path, bundle: Bundle, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(bundle.path, tmp_path / "moved"))
    assert publish(moved, repository).version == publication["version"]
    assert list(read_published(repository).versions) == [1] and not (repository / "ranker" / "2").exists()


def test_a_failing_gate_leaves_everything_as_it_was(repository: Path, bundle: Bundle, tmp_path: Path) -> None:
    other = with_reference(bundle, tmp_path / "other", "query_D", lambda query_D: query_D + np.float32(0.01))
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        publish(other.path, repository)
    assert (
        "other: not published, version 1 stays active: Triton differs from training: max query difference "
        "1.00e-02" in str(error.value)
    )
    assert "(allowed 0.0001), the ten best are identical for 20 of 20 users" in str(error.value)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    assert open_manifest(other.path, BundleManifest).parity == bundle.manifest.parity


def test_the_triton_gate_notices_other_scores_and_another_order(
    repository: Path, bundle: Bundle, tmp_path: Path
) -> None:
    lower = with_reference(
        bundle, tmp_path / "lower", "top_scores_K", lambda scores_K: scores_K - np.float32(0.002)
    )
    swapped = with_reference(
        bundle, tmp_path / "swapped", "top_rows_K", lambda rows_K: rows_K[[1, 0, *range(2, len(rows_K))]]
    )
    with Networks(repository, 1) as networks:
        networks.ensure()
        same, other_scores, other_order = (
            asyncio.run(triton_parity(one, 1, networks.address, silent)) for one in (bundle, lower, swapped)
        )
    assert same.holds and same.identical_top_10 == 20
    assert not other_scores.holds and other_scores.max_score_difference == pytest.approx(0.002, abs=1e-5)
    assert not other_order.holds and other_order.identical_top_10 == 0


def test_the_http_gate_notices_another_answer(service_url: str, bundle: Bundle, tmp_path: Path) -> None:
    assert asyncio.run(http_parity(bundle, service_url, silent)).holds
    shifted = with_reference(
        bundle, tmp_path / "shifted", "top_scores_K", lambda scores_K: scores_K + np.float32(0.5)
    )
    figures = asyncio.run(http_parity(shifted, service_url, silent))
    assert (
        not figures.holds
        and figures.max_score_difference == pytest.approx(0.5, abs=1e-4)
        and figures.identical_top_10 == 20
    )
    swapped = with_reference(bundle, tmp_path / "swapped", "top_rows_K", lambda rows_K: rows_K[::-1])
    assert asyncio.run(http_parity(swapped, service_url, silent)).identical_top_10 == 0


def test_an_altered_bundle_is_not_published(bundle: Bundle, repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    flip_byte(copy / "ranker.onnx")
    with pytest.raises(UserError, match=r"ranker\.onnx: altered since it was written"):
        publish(copy, repository)


def test_other_dims_are_refused_beside_older_versions(repository: Path, tmp_path: Path) -> None:
    wide = build_bundle(
        tmp_path / "wide", Shape(num_items=30, num_users=3, num_reference_users=2, dim=128, num_candidates=10)
    )
    with pytest.raises(
        UserError,
        match=r"dims \[-1, 64\], the bundle's are \[-1, 128\].* another --repository, or remove versions 1 "
        r"first",
    ):
        publish(wide, repository)


def test_one_at_a_time(bundle: Bundle, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another publish is at work there"):
        publish(bundle.path, tmp_path)
    os.close(descriptor)


def test_what_is_not_published(
    unicode_bundle: Bundle, bundle: Bundle, repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"is not published in .*: run `passerelle publish .*` first"):
        published_version(unicode_bundle, repository)
    copy = Path(shutil.copytree(repository, tmp_path / "models"))
    shutil.rmtree(copy / "ranker" / "1")
    with pytest.raises(UserError, match="is not published in"):
        published_version(bundle, copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ('{"active": "x"}', "active: "), ('{"verions": {}}', "did you mean versions")],
)
def test_an_unreadable_list_of_versions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "published.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_published(tmp_path)


def test_nothing_is_published_in_an_empty_folder(tmp_path: Path) -> None:
    assert json.loads(read_published(tmp_path).model_dump_json()) == {"active": None, "versions": {}}
