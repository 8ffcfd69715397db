"""What it brings to answer several requests at once, stage by stage: Triton's dynamic batching, and searches
of several queries.

    make demo && .venv/bin/python -m benchmarks.batching           # three minutes on 2 quiet cores

Shape legend: B batch, L history length, D vector width, C candidates, F features, Q queries.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import environment, latency_summary, write_result
from benchmarks.retrieval import TARGET, K, clustered
from passerelle.bundle import QUERY_ENCODER, RANKER, Bundle, open_bundle
from ray_cluster.demo import BUNDLE, REPOSITORY
from ray_cluster.publishing import published_version
from serving.retrievers.index_store import make_index, tuned_recall
from serving.retrievers.retriever import Retriever
from serving.stages.lookup import bucket_length
from serving.triton.client import TritonClient, read_model_config
from serving.triton.server import TritonServer

CLIENTS = (1, 2, 4, 8, 16)
TOGETHER = (1, 2, 4, 8, 16)
SHARES = (0.01, 0.54, 1.0)
VECTORS = 300_000
SEARCHES = 480
HISTORY = 100
CANDIDATES = 100


def main() -> None:
    """Measure both, and store one result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="of each measurement of Triton (default %(default)s)"
    )
    seconds = parser.parse_args().seconds
    started, bundle = environment(), open_bundle(Path(BUNDLE))
    values: dict[str, Any] = {"retrieval": {"vectors": VECTORS, "k": K, "ms_a_query": _searches()}}
    values["triton"] = {
        merged: _networks(bundle, merged == "merged", seconds) for merged in ("merged", "one_by_one")
    }
    write_result("batching", started, values)


def _searches() -> dict[str, dict[str, float]]:
    """Mean milliseconds of a query by how many are searched together, each under a mask of its own as users'
    requests have.
    """
    vectors_ND, tuning_QD, queries_QD = clustered(VECTORS, np.random.default_rng(0))
    queries_QD, passing_N = queries_QD[:SEARCHES], np.random.default_rng(1).random(VECTORS)
    masks = [[np.roll(passing_N, shift) <= share for shift in range(max(TOGETHER))] for share in SHARES]
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="passerelle-batching-") as folder:
        index = make_index("faiss", Path(folder), vectors_ND)
        tuned_recall(index, vectors_ND, tuning_QD, TARGET)
        retriever = Retriever(vectors_ND, index)
        for share, allowed in zip(SHARES, masks, strict=True):
            found[str(share)] = {}
            for together in TOGETHER:
                of_each = [None] * together if share == 1 else allowed[:together]
                retriever.search(queries_QD[:together], K, of_each)
                begun = time.perf_counter()
                for first in range(0, len(queries_QD), together):
                    retriever.search(queries_QD[first : first + together], K, of_each)
                found[str(share)][str(together)] = round(
                    1e3 * (time.perf_counter() - begun) / len(queries_QD), 3
                )
            print("retrieval", share, found[str(share)], flush=True)
    return found


def _networks(bundle: Bundle, merged: bool, seconds: float) -> dict[str, Any]:
    """Both networks on a Triton of their own, with requests merged as the repository says, or run one by
    one.
    """
    rng, version = np.random.default_rng(0), published_version(bundle, REPOSITORY)
    length = bucket_length(HISTORY, bundle.manifest.max_history)
    inputs: dict[str, dict[str, npt.NDArray[Any]]] = {
        QUERY_ENCODER: {
            "item_vectors": rng.standard_normal(
                (1, length, bundle.history_vectors_RD.shape[1]), dtype=np.float32
            ),
            "mask": np.ones((1, length), dtype=np.bool_),
            "event_types": np.zeros((1, length), dtype=np.int64),
            "timestamps_ms": np.arange(length, dtype=np.int64)[None] * 60_000,
            "query_timestamp_ms": np.array([[length * 60_000]]),
            **{
                name: np.zeros((1, width), np.int64 if name.endswith("codes") else np.float32)
                for name, width in bundle.query_encoding.widths().items()
            },
        },
        RANKER: {
            "features": rng.standard_normal((CANDIDATES, len(bundle.manifest.features)), dtype=np.float32)
        },
    }
    with tempfile.TemporaryDirectory(prefix="passerelle-batching-") as folder:
        repository = Path(folder) / "repository"
        shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("*.sqlite*"))
        for model in inputs:
            config = read_model_config(path := repository / model / "config.pbtxt")
            if not merged:
                config.ClearField("dynamic_batching")
            path.write_text(str(config), encoding="utf-8")
        with TritonServer(repository) as server:
            return {
                model: asyncio.run(_asked(server.grpc_address, repository, model, version, one, seconds))
                for model, one in inputs.items()
            }


async def _asked(
    address: str,
    repository: Path,
    model: str,
    version: int,
    inputs: dict[str, npt.NDArray[Any]],
    seconds: float,
) -> dict[str, Any]:
    """Clients in turns that each wait for their answer, over one connection as a replica has."""
    client = TritonClient(address)
    await client.load(model, repository / model / "config.pbtxt", [version])
    found = {}
    for clients in CLIENTS:
        latencies_ms: list[float] = []
        until = time.perf_counter() + seconds

        async def ask(until: float = until, latencies_ms: list[float] = latencies_ms) -> None:
            while (begun := time.perf_counter()) < until:
                await client.infer(model, version, inputs)
                latencies_ms.append(1e3 * (time.perf_counter() - begun))

        await asyncio.gather(*(ask() for _ in range(clients)))
        found[str(clients)] = {
            "answered_per_s": round(len(latencies_ms) / seconds, 1),
            **latency_summary(latencies_ms),
        }
        print(model, clients, found[str(clients)], flush=True)
    await client.close()
    return found


if __name__ == "__main__":
    main()
