"""Third stage: the ranker's opinion of each candidate.

Shape legend: C candidates, F features.
"""

import asyncio

import numpy as np

from passerelle.arrays import Float32Array
from passerelle.bundle import RANKER, Bundle
from passerelle.errors import UserError
from passerelle.features import RankingFeatures
from serving.stages.types import Candidates, Inference, Query


class Ranking:
    """Computes the ranking features, by the code that training used, and lets the ranker score them.

    Args:
        bundle: what the features are made of.
        inference: runs the ranker.
        version: which version of it.

    Raises:
        UserError: the bundle's ranker was trained on other features than this code computes.
    """

    def __init__(self, bundle: Bundle, inference: Inference, version: int) -> None:
        manifest = bundle.manifest
        vectors_RD = np.asarray(bundle.vectors_RD)
        self._features = RankingFeatures(
            vectors_RD, bundle.counts_R, bundle.recent_counts_R, bundle.items, manifest.item_features
        )
        if self._features.names != manifest.features:
            differing = sorted(set(self._features.names) ^ set(manifest.features)) or "their order"
            raise UserError(
                f"{bundle.path}: its ranker has other features than this code computes ({differing}): train and export again"
            )
        self._inference = inference
        self._version = version

    async def run(
        self, query: Query, candidates: Candidates, timestamp_ms: int, timeout_s: float = 2.0
    ) -> Float32Array:
        """Scores of the candidates, in their order.

        Args:
            timestamp_ms: time of the request, milliseconds since the epoch.
            timeout_s: for the network.

        Returns:
            float32 [C].

        Raises:
            InferenceError: the network does not answer in time.
        """
        features_CF = self._features.compute(
            candidates.rows_C, candidates.scores_C, query.history_L, timestamp_ms
        )
        most = await self._inference.max_batch_size(RANKER, self._version, timeout_s)
        parts = [features_CF[start : start + most] for start in range(0, len(features_CF), most)]
        outputs = await asyncio.gather(
            *(self._inference.infer(RANKER, self._version, {"features": part}, timeout_s) for part in parts)
        )
        return (
            np.concatenate([output["score"][:, 0] for output in outputs])
            if parts
            else np.empty(0, dtype=np.float32)
        )
