"""The index of a bundle on disk, in the folder `index` beside its vectors.

It is built once, its recall is measured, and every replica maps it into memory.

    <bundle>/index/
      manifest.json     the retriever, the vectors that are indexed, recall against a full scan
      vectors.faiss     or the folder of a LanceDB table

A bundle that was made from another one by adding items may carry its index: added items are scanned.
Shape legend: N vectors, D vector width, Q queries, K results.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from passerelle.arrays import Float32Array
from passerelle.bundle import INDEX, Bundle
from passerelle.errors import UserError
from passerelle.files import new_directory
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.manifest import Manifest, open_manifest, provenance, write_manifest
from serving.retrievers.base import Index, scan
from serving.retrievers.retriever import SCAN_LIMIT, Retriever

Kind = Literal["exact", "faiss", "lancedb"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TARGET_RECALL = 0.99
RECALL_FILTERS = ("all", "half", "tenth", "region")
"""Filters that recall is measured under: random ones, and the tenth of all vectors in one direction."""
RECALL_AT = 100
MAX_QUERIES = 100
_LIBRARIES: Mapping[Kind, str] = {"exact": "numpy", "faiss": "faiss-cpu", "lancedb": "lancedb"}
_SEED = 20


class IndexManifest(Manifest):
    """Description of an index: its vectors, its parameters and its recall."""

    KIND: ClassVar[str] = "index"
    MADE_BY: ClassVar[str] = "passerelle build-index"

    retriever: Kind
    num_vectors: int
    dim: int
    vectors_sha256: str
    parameters: dict[str, Any]
    """Parameters of the build, and the number of probes."""
    recall: dict[str, float]
    """recall@100 against a full scan, by filter (`RECALL_FILTERS`)."""
    target_recall: float
    queries: int
    """Number of queries that recall was measured with: those of the bundle's reference users."""
    build_s: float


def open_index(kind: Kind, directory: Path, vectors_ND: Float32Array, **parameters: Any) -> Index | None:
    """Returns the index that a directory holds; None for `exact`, which has none."""
    options = {"probes": parameters["probes"]} if "probes" in parameters else {}
    if kind == "faiss":
        # imported here: a machine that serves with one library need not have the other
        from serving.retrievers.faiss_index import FILE, FaissIndex

        return FaissIndex(directory / FILE, **options)
    if kind == "lancedb":
        from serving.retrievers.lancedb_index import LanceIndex

        return LanceIndex(directory, vectors_ND, **options)
    return None


def make_index(kind: Kind, directory: Path, vectors_ND: Float32Array) -> Index | None:
    """Builds the index of some vectors in a directory; returns None for `exact`, which has none."""
    if kind == "faiss":
        from serving.retrievers.faiss_index import FaissIndex

        return FaissIndex.build(vectors_ND, directory)
    if kind == "lancedb":
        from serving.retrievers.lancedb_index import LanceIndex

        return LanceIndex.build(vectors_ND, directory)
    return None


def build_index(
    bundle: Bundle,
    kind: Kind = "faiss",
    *,
    target_recall: float = TARGET_RECALL,
    scan_limit: int = SCAN_LIMIT,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _line: None,
) -> IndexManifest:
    """Builds the index of a bundle with as many probes as the target needs, and writes it beside the vectors.

    Args:
        target_recall: recall@100 that has to be reached under every filter of `RECALL_FILTERS`.
        scan_limit: filters that leave no more vectors are scanned, and need no index; see `Retriever`.
        report: receives lines of progress.

    Raises:
        UserError: there is an index, or its recall stays below the target; then nothing is written.
    """
    vectors_ND = np.asarray(bundle.vectors_RD)[FIRST_ITEM_ROW:]
    queries_QD = bundle.reference().queries()[:MAX_QUERIES]
    with new_directory(bundle.path / INDEX, overwrite=overwrite) as scratch:
        started_s = time.perf_counter()
        report(f"{kind}: building over {len(vectors_ND):,} vectors")
        index = make_index(kind, scratch, vectors_ND)
        build_s = time.perf_counter() - started_s
        recall = tuned_recall(index, vectors_ND, queries_QD, target_recall, scan_limit, report)
        files = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file())
        manifest = IndexManifest(
            **provenance(IndexManifest, scratch, files, [_LIBRARIES[kind]]),
            retriever=kind,
            num_vectors=len(vectors_ND),
            dim=bundle.manifest.dim,
            vectors_sha256=_digest(vectors_ND),
            parameters={} if index is None else index.parameters,
            recall=recall,
            target_recall=target_recall,
            queries=len(queries_QD),
            build_s=round(build_s, 1),
        )
        write_manifest(scratch, manifest)
    return manifest


def tuned_recall(
    index: Index | None,
    vectors_ND: Float32Array,
    queries_QD: Float32Array,
    target: float,
    scan_limit: int = SCAN_LIMIT,
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, float]:
    """Increases the probes of an index until its recall reaches the target, and returns recall by filter.

    Raises:
        UserError: the target is not reached with all probes.
    """
    while True:
        recall = measured_recall(Retriever(vectors_ND, index, scan_limit=scan_limit), vectors_ND, queries_QD)
        worst = min(recall, key=lambda name: recall[name])
        report(
            f"recall@{RECALL_AT} {recall[worst]:.4f} where a filter lets pass: {worst}"
            + (f"; {index.parameters}" if index else "")
        )
        if recall[worst] >= target:
            return recall
        if index is None or not index.increase_probes():
            raise UserError(
                f"recall@{RECALL_AT} is {recall[worst]:.4f} where a filter lets pass: {worst}, "
                f"below the target {target}: "
                "ask for less (--target-recall), or choose another --retriever"
            )


def measured_recall(
    retriever: Retriever, vectors_ND: Float32Array, queries_QD: Float32Array
) -> dict[str, float]:
    """Returns mean recall@100 against a full scan, by filter."""
    rng = np.random.default_rng(_SEED)
    drawn_N = rng.random(len(vectors_ND))
    along_N = vectors_ND @ rng.standard_normal((vectors_ND.shape[1],), dtype=np.float32)
    filters = {
        "all": None,
        "half": drawn_N < 0.5,
        "tenth": drawn_N < 0.1,
        "region": along_N >= np.quantile(along_N, 0.9),
    }
    recall = {}
    for name in RECALL_FILTERS:
        allowed_N = filters[name]
        found = retriever.search(queries_QD, RECALL_AT, [allowed_N] * len(queries_QD))
        exact = [scan(vectors_ND, query_D, RECALL_AT, allowed_N) for query_D in queries_QD]
        num_hits = sum(
            len(np.intersect1d(hits.positions_K, exact_hits.positions_K))
            for hits, exact_hits in zip(found, exact, strict=True)
        )
        recall[name] = num_hits / max(1, sum(map(len, exact)))
    return recall


def index_manifest(bundle: Bundle) -> IndexManifest | None:
    """Returns the manifest of a bundle's index, whose files are verified; None where it has none.

    Raises:
        UserError: the manifest or a file is damaged.
    """
    directory = bundle.path / INDEX
    return open_manifest(directory, IndexManifest) if directory.exists() else None


def open_retriever(bundle: Bundle, *, scan_limit: int = SCAN_LIMIT) -> tuple[Retriever, IndexManifest | None]:
    """Returns the retriever of a bundle, and the manifest of its index, if it has one.

    Raises:
        UserError: the index is of other vectors, or damaged.
    """
    vectors_ND = np.asarray(bundle.vectors_RD)[FIRST_ITEM_ROW:]
    directory, manifest = bundle.path / INDEX, index_manifest(bundle)
    if manifest is None:
        return Retriever(vectors_ND), None
    if manifest.num_vectors > len(vectors_ND) or manifest.vectors_sha256 != _digest(
        vectors_ND[: manifest.num_vectors]
    ):
        raise UserError(
            f"{directory} is not of the vectors of {bundle.path}: "
            "build it anew with `passerelle build-index --overwrite`"
        )
    index = open_index(manifest.retriever, directory, vectors_ND, **manifest.parameters)
    return Retriever(vectors_ND, index, scan_limit=scan_limit), manifest


def _digest(vectors_ND: Float32Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors_ND).data).hexdigest()
