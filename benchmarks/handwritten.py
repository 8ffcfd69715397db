"""What an engineer would write for one model in an afternoon: FastAPI, ONNX Runtime, FAISS and LightGBM in
one process, no Ray, no Triton.

    python -m benchmarks.handwritten BUNDLE RUN PORT

It does the work of a plain `/v1/recommend` of ours, and gives the same items: history, query vector, search
without seen items, features, ranker, ids.
It has no filters, playlists, events, fallbacks, deadlines, versions or parity gate.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response

from passerelle.bundle import open_bundle
from passerelle.ids import FIRST_ITEM_ROW
from training.ranker import load_ranker

faiss: Any = typed_faiss


def build(bundle_path: Path, run_path: Path) -> FastAPI:
    """The application."""
    bundle = open_bundle(bundle_path, verify=False)
    manifest = bundle.manifest
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    encoder = onnxruntime.InferenceSession(
        bundle_path / "query_encoder.onnx", options, providers=["CPUExecutionProvider"]
    )
    ranker = load_ranker(run_path)
    ranker.booster.params["num_threads"] = 1
    vectors_RD, history_RD = np.asarray(bundle.vectors_RD), np.asarray(bundle.history_vectors_RD)
    features = bundle.ranking_features()
    index = faiss.IndexFlatIP(manifest.dim)
    index.add(np.ascontiguousarray(vectors_RD[FIRST_ITEM_ROW:]))
    nothing = {
        name: np.zeros((1, width), np.int64 if name.endswith("codes") else np.float32)
        for name, width in bundle.query_encoding.widths().items()
    }
    app = FastAPI()

    @app.post("/v1/recommend")
    async def recommend(request: Request) -> Response:
        asked = await request.json()
        now_ms = time.time_ns() // 1_000_000
        history = bundle.history(bundle.user_ids.row(asked["user_id"]))
        rows_L, times_L = (
            history.item_rows_L[-manifest.max_history :],
            history.timestamps_ms_L[-manifest.max_history :],
        )
        inputs = {
            "item_vectors": history_RD[rows_L][None],
            "mask": np.ones((1, len(rows_L)), dtype=bool),
            "event_types": history.event_types_L[-manifest.max_history :][None],
            "timestamps_ms": times_L[None],
            "query_timestamp_ms": np.array([[now_ms]]),
            **nothing,
        }
        names = {one.name for one in encoder.get_inputs()}
        query_1D = encoder.run(["query"], {name: array for name, array in inputs.items() if name in names})[0]
        allowed_N = np.ones(len(vectors_RD) - FIRST_ITEM_ROW, dtype=bool)
        allowed_N[bundle.seen(history) - FIRST_ITEM_ROW] = False
        selector = faiss.IDSelectorBitmap(np.packbits(allowed_N, bitorder="little"))
        scores_1C, found_1C = index.search(
            query_1D, manifest.num_candidates, params=faiss.SearchParameters(sel=selector)
        )
        rows_C = found_1C[0][found_1C[0] >= 0] + FIRST_ITEM_ROW
        ranked_C = ranker.predict(features.compute(rows_C, scores_1C[0][: len(rows_C)], rows_L, now_ms))
        best = np.argsort(-ranked_C, kind="stable")[: asked["k"]]
        items = [
            {"item_id": item_id, "score": float(score)}
            for item_id, score in zip(bundle.item_ids.ids(rows_C[best]), ranked_C[best], strict=True)
        ]
        return Response(json.dumps({"items": items}), media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(
        build(Path(sys.argv[1]), Path(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[3]),
        log_level="warning",
        access_log=False,
    )
