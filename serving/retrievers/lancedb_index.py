"""A LanceDB table of vectors, on disk, which may be larger than memory.

No other module imports lancedb.
It takes no bitmap, and a filter is never written as text: more are fetched until enough of them are allowed.

Shape legend: N vectors, D vector width, Q queries, K results, F fetched.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfPq

from passerelle.arrays import Float32Array
from serving.retrievers.base import Hits, Mask, best

TABLE = "vectors"
POSITION, VECTOR = "position", "vector"
FIRST_PROBES = 24
REFINE_FACTOR = 10
SETTLED = 0.01
_DIMS_PER_SUB_VECTOR = 4
_MIN_VECTORS_TO_INDEX = 4096
_MARGIN = 1.3
_BATCH = 100_000


class LanceIndex:
    """An inverted file of product-quantised vectors, whose best results are scored again exactly.

    Args:
        directory: a directory that `build` wrote.
        vectors_ND: the vectors, for exact scores of results.
        probes: number of partitions that a search without a filter probes.
    """

    def __init__(self, directory: Path, vectors_ND: Float32Array, *, probes: int = FIRST_PROBES) -> None:
        self._table = lancedb.connect(directory).open_table(TABLE)
        self._num_vectors = self._table.count_rows()
        self._vectors_ND = vectors_ND
        self._partitions = max(1, int(np.sqrt(self._num_vectors)))
        self._probes = min(probes, self._partitions)

    @classmethod
    def build(cls, vectors_ND: Float32Array, directory: Path) -> Self:
        """Writes a table and its index into a directory, and opens it."""
        num_vectors, dim = vectors_ND.shape
        schema = pa.schema([(POSITION, pa.int64()), (VECTOR, pa.list_(pa.float32(), dim))])
        batches = (
            pa.record_batch(
                [
                    pa.array(np.arange(start, min(start + _BATCH, num_vectors))),
                    pa.FixedSizeListArray.from_arrays(
                        pa.array(vectors_ND[start : start + _BATCH].ravel(), pa.float32()), dim
                    ),
                ],
                schema=schema,
            )
            for start in range(0, num_vectors, _BATCH)
        )
        table = lancedb.connect(directory).create_table(TABLE, data=batches, schema=schema)
        # product quantisation learns 256 codes; fewer vectors are scanned by lancedb itself
        if num_vectors >= _MIN_VECTORS_TO_INDEX:
            sub_vectors = max(1, dim // _DIMS_PER_SUB_VECTOR)
            partitions = max(1, int(np.sqrt(num_vectors)))
            table.create_index(
                VECTOR,
                config=IvfPq(distance_type="dot", num_partitions=partitions, num_sub_vectors=sub_vectors),
            )
        return cls(directory, vectors_ND)

    @property
    def num_vectors(self) -> int:
        return int(self._num_vectors)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"probes": self._probes, "partitions": self._partitions}

    def increase_probes(self) -> bool:
        if 2 * self._probes > self._partitions:
            return False
        self._probes *= 2
        return True

    def search(self, queries_QD: Float32Array, k: int, allowed_Q: Sequence[Mask | None]) -> list[Hits]:
        return [
            self._one(query_D, k, allowed_N) for query_D, allowed_N in zip(queries_QD, allowed_Q, strict=True)
        ]

    def _one(self, query_D: Float32Array, k: int, allowed_N: Mask | None) -> Hits:
        if allowed_N is None:
            return self._fetch(query_D, k, self._probes, k, None)
        share = max(1, int(np.count_nonzero(allowed_N))) / self._num_vectors
        fetch, probes = int(_MARGIN * k / share) + 1, int(self._probes / share) + 1
        found = self._fetch(query_D, fetch, probes, k, allowed_N)
        while fetch < self._num_vectors:
            fetch, probes = 2 * fetch, 2 * probes
            more = self._fetch(query_D, fetch, probes, k, allowed_N)
            changed = len(np.setdiff1d(more.positions_K, found.positions_K, assume_unique=True))
            settled, found = len(found) == k and changed <= SETTLED * k, more
            if settled:
                break
        return found

    def _fetch(self, query_D: Float32Array, fetch: int, probes: int, k: int, allowed_N: Mask | None) -> Hits:
        """Returns the k best allowed of the `fetch` best."""
        search: Any = self._table.search(query_D, vector_column_name=VECTOR)
        search = (
            search.distance_type("dot")
            .limit(min(fetch, self._num_vectors))
            .nprobes(min(probes, self._partitions))
        )
        rows = search.refine_factor(REFINE_FACTOR).select([POSITION, "_distance"]).to_arrow()
        positions_F = np.asarray(rows.column(POSITION).to_numpy(), dtype=np.int64)
        if allowed_N is not None:
            positions_F = positions_F[allowed_N[positions_F]]
        return best(positions_F, self._vectors_ND[positions_F] @ query_D, k)
