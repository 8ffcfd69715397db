"""Third stage: one score of the ranker for each candidate.

Shape legend: C candidates, F features.
"""

import asyncio

import numpy as np

from passerelle.arrays import Float32Array
from passerelle.bundle import RANKER, Bundle
from passerelle.errors import UserError
from serving.stages.types import Candidates, Query, RequestTime
from serving.triton.inference import INFER_TIMEOUT_S, Inference


class Ranking:
    """Computes the ranking features with the code that training used, and runs the ranker on them.

    Args:
        bundle: vectors, counts and item columns that the features are computed from.
        inference: runs the ranker.
        version: version of the ranker.

    Raises:
        UserError: the bundle's ranker was trained on other features than this code computes.
    """

    def __init__(self, bundle: Bundle, inference: Inference, version: int) -> None:
        manifest = bundle.manifest
        self._features = bundle.ranking_features()
        if self._features.names != manifest.features:
            differing = sorted(set(self._features.names) ^ set(manifest.features)) or "their order"
            raise UserError(
                f"{bundle.path}: its ranker has other features than this code computes ({differing}): "
                "train and export again"
            )
        self._inference = inference
        self._version = version

    async def run(
        self,
        query: Query,
        candidates: Candidates,
        request_time: RequestTime,
        timeout_s: float = INFER_TIMEOUT_S,
    ) -> Float32Array:
        """Returns the scores of the candidates, in their order.

        Args:
            request_time: features of recency count from its `timestamp_ms`.
            timeout_s: for the network.

        Returns:
            float32 [C].

        Raises:
            InferenceError: the network does not answer in time.
        """
        features_CF = self._features.compute(
            candidates.rows_C, candidates.scores_C, query.history_L, request_time.timestamp_ms
        )
        batch_size = await self._inference.max_batch_size(RANKER, self._version, timeout_s)
        batches = [
            features_CF[start : start + batch_size] for start in range(0, len(features_CF), batch_size)
        ]
        outputs = await asyncio.gather(
            *(
                self._inference.infer(RANKER, self._version, {"features": batch}, timeout_s)
                for batch in batches
            )
        )
        if not outputs:
            return np.empty(0, dtype=np.float32)
        return np.concatenate([output["score"][:, 0] for output in outputs])

    async def ready(self) -> bool:
        """Returns whether Triton serves this version of the ranker."""
        return await self._inference.ready(RANKER, self._version)
