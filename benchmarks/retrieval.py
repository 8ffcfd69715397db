"""Retrieval under filters: recall and latency by filter selectivity and retriever.

LanceDB, with the settings of a public recommender, is measured in the same run.
Without options, it takes ten minutes on 2 quiet cores, for 1,500,000 vectors of width 64.

    .venv/bin/python -m benchmarks.retrieval
    .venv/bin/python -m benchmarks.retrieval --vectors 100000

A search is one query after another: the filter made into a mask, then the k best under it.
Recall is against a full scan.

Shape legend: N vectors, D vector width, Q queries, T topics, S subjects.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
from lancedb.index import IvfPq

from benchmarks.harness import apart, environment, latency_summary, write_result
from passerelle.arrays import Float32Array, Float64Array, Int64Array
from passerelle.dataset import FeatureColumn
from serving.catalogue.columns import Columns
from serving.catalogue.filter_budget import FilterBudget
from serving.retrievers.base import Mask, scan
from serving.retrievers.index_store import KINDS, Kind, make_index, open_index, tuned_recall
from serving.retrievers.retriever import Retriever
from serving.schemas.filters import Range

K = 150
SHARES = (0.0001, 0.01, 0.1, 0.54, 1.0)
WARM_UP = 20
SEARCHES = {"faiss": 500, "lancedb": 40, "exact": 40, "peer": 20}
RECALL_QUERIES = 40
TARGET = 0.99
PEER_PARTITIONS, PEER_SUB_VECTORS, PEER_REFINE = 8, 4, 10
DIM = 64


def main() -> None:
    """Measure every retriever and the peer, and store one result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=1_500_000, help="how many (default %(default)s)")
    count = parser.parse_args().vectors
    started = environment()
    with tempfile.TemporaryDirectory(prefix="passerelle-retrieval-") as folder:
        scratch = Path(folder)
        vectors_ND, tuning_QD, queries_QD = clustered(count, np.random.default_rng(0))
        np.save(scratch / "vectors.npy", vectors_ND)
        passing_N = np.random.default_rng(1).random(count)
        values: dict[str, Any] = {
            "vectors": count,
            "dim": DIM,
            "k": K,
            "target_recall": TARGET,
            "retrievers": {},
        }
        exact = _exact(vectors_ND, passing_N, queries_QD[:RECALL_QUERIES])
        for kind in KINDS:
            values["retrievers"][kind] = _retriever(
                kind, scratch, vectors_ND, passing_N, tuning_QD, queries_QD, exact
            )
        values["peer"] = _peer(scratch / "peer", vectors_ND, passing_N, queries_QD, exact[0.54])
        values["replicas"] = _replicas(scratch, values["retrievers"]["faiss"]["parameters"])
    mine = values["retrievers"]["faiss"]["by_share"]["0.54"]
    values["peer_over_ours_p50_at_54_percent"] = (
        values["peer"]["latency"]["p50_ms"] / mine["latency"]["p50_ms"]
    )
    write_result("retrieval", started, values)


def clustered(count: int, rng: np.random.Generator) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Unit vectors [N, D] around 3,000 subjects of 100 topics, and two sets of queries of the same kind [Q,
    D]: to tune and to measure.
    """
    topics_TD = _unit(rng.standard_normal((100, DIM)))
    subjects_SD = _unit(
        topics_TD[rng.integers(100, size=3000)] + 0.8 * _unit(rng.standard_normal((3000, DIM)))
    )

    def draw(number: int) -> Float32Array:
        around_ND = subjects_SD[rng.integers(3000, size=number)].astype(np.float32)
        return _unit(around_ND + 0.6 * _unit(rng.standard_normal((number, DIM), dtype=np.float32)))

    return draw(count), draw(100), draw(SEARCHES["faiss"] + WARM_UP)


def _unit(vectors_ND: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


def _exact(
    vectors_ND: Float32Array, passing_N: Float64Array, queries_QD: Float32Array
) -> dict[float, list[set[int]]]:
    masks = {share: passing_N <= share for share in SHARES}
    return {share: _scanned(vectors_ND, queries_QD, mask) for share, mask in masks.items()}


def _scanned(vectors_ND: Float32Array, queries_QD: Float32Array, allowed_N: Mask) -> list[set[int]]:
    return [set(scan(vectors_ND, query_D, K, allowed_N).positions_K.tolist()) for query_D in queries_QD]


def _retriever(
    kind: Kind,
    scratch: Path,
    vectors_ND: Float32Array,
    passing_N: Float64Array,
    tuning_QD: Float32Array,
    queries_QD: Float32Array,
    exact: dict[float, list[set[int]]],
) -> dict[str, Any]:
    """Build, tune to the target, then time each selectivity."""
    folder = scratch / kind
    folder.mkdir()
    begun = time.perf_counter()
    index = make_index(kind, folder, vectors_ND)
    build_s = time.perf_counter() - begun
    tuned_recall(index, vectors_ND, tuning_QD, TARGET)
    retriever = Retriever(vectors_ND, index)
    table = pa.table({"passing": passing_N})
    columns = Columns(table, [FeatureColumn(name="passing", kind="numeric")])

    def search(query_D: Float32Array, share: float) -> Int64Array:
        allowed_N: Mask | None = None
        if share < 1:
            allowed_N = columns.mask(
                Range(op="range", column="passing", max=share), "filters.0", FilterBudget()
            )
        return retriever.search(query_D[None], K, [allowed_N])[0].positions_K

    by_share = {}
    for share in SHARES:
        found, latencies_ms = _timed(partial(search, share=share), queries_QD, SEARCHES[kind])
        by_share[str(share)] = {
            "recall": _recall(found, exact[share]),
            "latency": latency_summary(latencies_ms),
        }
        print(kind, share, by_share[str(share)], flush=True)
    # A filter that goes with the vectors: the tenth of them that lies farthest in some direction, wherever
    # the query is.
    direction_D = np.random.default_rng(2).standard_normal(DIM).astype(np.float32)
    along_N = vectors_ND @ direction_D
    region_N = along_N >= np.quantile(along_N, 0.9)
    found, latencies_ms = _timed(
        lambda query_D: retriever.search(query_D[None], K, [region_N])[0].positions_K,
        queries_QD,
        SEARCHES[kind],
    )
    expected = _scanned(vectors_ND, queries_QD[:RECALL_QUERIES], region_N)
    by_share["region"] = {"recall": _recall(found, expected), "latency": latency_summary(latencies_ms)}
    print(kind, "region", by_share["region"], flush=True)
    return {
        "build_s": round(build_s, 1),
        "parameters": {} if index is None else index.parameters,
        "by_share": by_share,
    }


def _peer(
    folder: Path,
    vectors_ND: Float32Array,
    passing_N: Float64Array,
    queries_QD: Float32Array,
    exact: list[set[int]],
) -> dict[str, Any]:
    """LanceDB with an IVF_PQ index of 8 partitions and 4 sub-vectors, refine factor 10, and a filter written
    as text on a plain column.
    """
    share = 0.54
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), DIM)
    table = lancedb.connect(folder).create_table(
        "items", pa.table({"position": np.arange(len(vectors_ND)), "vector": vectors, "passing": passing_N})
    )
    begun = time.perf_counter()
    table.create_index(
        "vector",
        config=IvfPq(distance_type="dot", num_partitions=PEER_PARTITIONS, num_sub_vectors=PEER_SUB_VECTORS),
    )
    build_s = time.perf_counter() - begun

    def search(query_D: Float32Array) -> Int64Array:
        query: Any = table.search(query_D, vector_column_name="vector")
        query = (
            query.distance_type("dot")
            .where(f"passing <= {share}", prefilter=True)
            .limit(K)
            .refine_factor(PEER_REFINE)
        )
        return np.asarray(
            query.nprobes(20).select(["position", "_distance"]).to_arrow().column("position").to_numpy()
        )

    found, latencies_ms = _timed(search, queries_QD, SEARCHES["peer"])
    settings = {
        "partitions": PEER_PARTITIONS,
        "sub_vectors": PEER_SUB_VECTORS,
        "refine_factor": PEER_REFINE,
        "passing": share,
    }
    return {
        **settings,
        "build_s": round(build_s, 1),
        "recall": _recall(found, exact),
        "latency": latency_summary(latencies_ms),
    }


def _timed(
    search: Callable[[Float32Array], Int64Array], queries_QD: Float32Array, count: int
) -> tuple[list[Int64Array], list[float]]:
    for query_D in queries_QD[-WARM_UP:]:
        search(query_D)
    found, latencies_ms = [], []
    for query_D in queries_QD[:count]:
        begun = time.perf_counter()
        found.append(search(query_D))
        latencies_ms.append(1e3 * (time.perf_counter() - begun))
    return found, latencies_ms


def _recall(found: list[Int64Array], exact: list[set[int]]) -> float:
    pairs = list(zip(found, exact, strict=False))  # exact answers are known of the first queries
    return sum(len(expected & set(mine.tolist())) for mine, expected in pairs) / max(
        1, sum(len(expected) for _, expected in pairs)
    )


def _replicas(scratch: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Memory of one process that searches, and of two at a time: what they map they share."""
    one = apart(_held_by, scratch, parameters, 1)
    two = apart(_held_by, scratch, parameters, 2)
    return {"one_mib": one, "two_mib": two}


def _held_by(scratch: Path, parameters: dict[str, Any], count: int) -> dict[str, Any]:
    """Proportional set size of `count` processes that have each searched, MiB; shared pages are counted
    once.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    searched, done = context.Barrier(count + 1), context.Event()
    children = [
        context.Process(target=_search_and_wait, args=(scratch, parameters, searched, done))
        for _ in range(count)
    ]
    for child in children:
        child.start()
    searched.wait()
    sizes = [psutil.Process(child.pid).memory_full_info().pss / 2**20 for child in children]
    done.set()
    for child in children:
        child.join()
    return {"each": [round(size, 1) for size in sizes], "total": round(sum(sizes), 1)}


def _search_and_wait(scratch: Path, parameters: dict[str, Any], searched: Any, done: Any) -> None:
    vectors_ND: Float32Array = np.load(scratch / "vectors.npy", mmap_mode="r")
    retriever = Retriever(vectors_ND, open_index("faiss", scratch / "faiss", vectors_ND, **parameters))
    rng = np.random.default_rng(3)
    for _ in range(300):
        retriever.search(vectors_ND[rng.integers(len(vectors_ND), size=1)], K)
    searched.wait()
    done.wait()


if __name__ == "__main__":
    main()
