"""The index of a bundle on disk: built, measured, opened, refused."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from passerelle.bundle import Bundle, open_bundle
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.topk import exact_topk
from ray_cluster.cli.build_index import command
from serving import dependencies
from serving.config import LiveEventsConfig, ServingConfig
from serving.dependencies import Dependencies, GraphSettings, build_retrieval
from serving.retrievers.faiss_index import FaissIndex
from serving.retrievers.index_store import KINDS, RECALL_FILTERS, build_index, open_retriever
from serving.schemas.recommend import RecommendRequest
from serving.stages.types import Query, RequestTime
from tests.support.files import flip_byte


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("kind", KINDS)
def test_index_is_built_measured_and_opened(copy: Bundle, kind: str) -> None:
    assert open_retriever(copy)[1] is None, "without an index all is scanned"
    built = build_index(copy, kind, scan_limit=0)  # type: ignore[arg-type]
    assert (
        set(built.recall) == set(RECALL_FILTERS)
        and min(built.recall.values()) >= 0.99
        and built.queries == 20
    )
    retriever, manifest = open_retriever(copy, scan_limit=0)
    assert manifest == built
    queries_QD = copy.reference().queries()
    rows_QK, _ = exact_topk(queries_QD, copy.vectors_RD, 10)
    found = np.stack([hits.positions_K + FIRST_ITEM_ROW for hits in retriever.search(queries_QD, 10)])
    assert np.mean(found == rows_QK) > 0.95
    with pytest.raises(UserError, match="already exists"):
        build_index(copy, "exact")
    open_bundle(copy.path)  # the bundle is as it was


def test_missed_target_recall_writes_nothing(copy: Bundle) -> None:
    with pytest.raises(
        UserError, match=r"recall@100 is 1\.0000 where a filter lets pass: all, below the target 1\.1"
    ):
        build_index(copy, "faiss", target_recall=1.1, scan_limit=0)
    assert not (copy.path / "index").exists()
    assert [path.name for path in copy.path.parent.iterdir()] == ["bundle"]


def test_index_of_other_vectors_is_refused(copy: Bundle) -> None:
    build_index(copy)
    for vectors_RD in (copy.vectors_RD[:-1], np.flip(copy.vectors_RD, axis=1)):
        with pytest.raises(UserError, match="is not of the vectors of"):
            open_retriever(Bundle(**{**copy.__dict__, "vectors_RD": vectors_RD}))


@pytest.mark.parametrize("kind", ["faiss", "lancedb"])
def test_a_flipped_byte_in_any_file_of_an_index_is_refused(copy: Bundle, kind: str) -> None:
    """One in the FAISS file was served, with wrong answers."""
    manifest = build_index(copy, kind)  # type: ignore[arg-type]
    assert manifest.files
    for name in manifest.files:
        path = copy.path / "index" / name
        content = path.read_bytes()
        flip_byte(path)
        with pytest.raises(UserError, match=re.escape(f"{name}: altered since it was written")):
            open_retriever(copy)
        path.write_bytes(content)
    open_retriever(copy)


def test_added_items_are_found_with_the_old_index(copy: Bundle) -> None:
    """What `add-items` writes: the same vectors, and some more."""
    build_index(copy)
    rng = np.random.default_rng(0)
    grown_RD = np.concatenate([copy.vectors_RD, rng.standard_normal((40, 64), dtype=np.float32)])
    grown = Bundle(**{**copy.__dict__, "vectors_RD": grown_RD})
    retriever, manifest = open_retriever(grown, scan_limit=0)
    assert manifest is not None and manifest.num_vectors == 300
    for query_D in grown_RD[-5:]:
        assert retriever.search(query_D[None], 1)[0].positions_K[0] >= 300


def test_exact_retrieval_uses_no_index(copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate of `publish`: an index that misses one candidate of a user would change the answer."""
    build_index(copy, scan_limit=0)
    monkeypatch.setattr(dependencies, "SCAN_LIMIT", 0)
    query = Query(np.empty(0, np.int64), np.empty(0, np.int64), copy.vectors_RD[5], 0, 0.0)

    def asked(*_: object) -> None:
        raise AssertionError("the index was asked")

    def retrieved(*, exact: bool) -> list[int]:
        settings = GraphSettings(
            bundle=copy.path,
            bundle_id=copy.manifest.bundle_id,
            version=1,
            triton="127.0.0.1:9",
            serving=ServingConfig(events=LiveEventsConfig(store="none")),
            exact=exact,
        )
        retrieval = build_retrieval(Dependencies(settings))
        return list(asyncio.run(retrieval.run(RecommendRequest(k=10), query, RequestTime.read(None))).rows_C)

    same = retrieved(exact=False)[:10]
    monkeypatch.setattr(FaissIndex, "search", asked)
    assert retrieved(exact=True)[:10] == same
    with pytest.raises(AssertionError, match="the index was asked"):
        retrieved(exact=False)


def test_a_replica_refuses_another_bundle_than_the_service_was_started_with(copy: Bundle) -> None:
    """It would mix the versions: the networks in Triton are still those of the first one."""
    settings = GraphSettings(
        bundle=copy.path,
        bundle_id="0123456789abcdef",
        version=1,
        triton="127.0.0.1:9",
        serving=ServingConfig(events=LiveEventsConfig(store="none")),
    )
    with pytest.raises(UserError, match=f"bundle {copy.manifest.bundle_id} stands there now, and"):
        Dependencies(settings)
    settings = settings.model_copy(update={"bundle_id": copy.manifest.bundle_id})
    Dependencies(settings)
    flip_byte(copy.path / "item_vectors.npy")
    with pytest.raises(UserError, match=r"item_vectors\.npy: altered since it was written"):
        Dependencies(settings)


def test_build_index_command(copy: Bundle) -> None:
    done = CliRunner().invoke(command, [str(copy.path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["num_vectors"] == 300
    again = CliRunner().invoke(command, [str(copy.path)])
    assert isinstance(again.exception, UserError)
    assert CliRunner().invoke(command, [str(copy.path), "--overwrite", "--retriever", "exact"]).exit_code == 0
