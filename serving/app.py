"""The HTTP interface, as a FastAPI application over a `Recommender`."""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from passerelle import __version__
from passerelle.errors import UserError
from serving.recommender import Recommender, UnknownItemError
from serving.schemas import ItemResponse, Problems, RecommendRequest, RecommendResponse, SimilarRequest, SimilarResponse
from serving.telemetry import CONTENT_TYPE, Telemetry
from serving.triton_client import TritonError

_REFUSALS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problems, "description": "The request does not fit; `loc` names the field."},
    503: {"model": Problems, "description": "Triton does not answer."},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problems, "description": "No such item."}}


def build_app(recommender: Recommender) -> FastAPI:
    """Bind the endpoints to a recommender."""
    app = FastAPI(title="Passerelle", version=__version__, description="Recommendations: lookup, retrieval, ranking, ordering.")
    telemetry = Telemetry()

    @app.post("/v1/recommend", response_model=RecommendResponse, responses=_REFUSALS)
    async def recommend(request: RecommendRequest) -> Response:
        """The best items for a user or a history. With neither, or nothing known of them, the popular items, and `fallback` says so."""
        answer = await recommender.recommend(request)
        telemetry.count("recommend", answer.fallback or "ok")
        telemetry.observe(answer.timings_ms)
        return _json(answer)

    @app.post("/v1/similar", response_model=SimilarResponse, responses={**_REFUSALS, **_NOT_FOUND})
    async def similar(request: SimilarRequest) -> Response:
        """The items most like one item."""
        answer = await recommender.similar(request)
        telemetry.count("similar", "ok")
        return _json(answer)

    @app.get("/v1/items/{item_id:path}", response_model=ItemResponse, responses=_NOT_FOUND)
    async def item(item_id: str) -> Response:
        """What the catalogue says of one item."""
        answer = recommender.item(item_id)
        telemetry.count("items", "ok")
        return _json(answer)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Triton does not serve this version yet."}})
    async def readyz() -> Response:
        """Requests will be answered: Triton serves both networks of the active version."""
        ready = await recommender.ready()
        content = {"ready": ready, "model_version": recommender.version}
        return Response(json.dumps(content), status_code=200 if ready else 503, media_type="application/json")

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and histograms of this replica for Prometheus."""
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE)

    def refuse(request: Request, status: int, problems: list[dict[str, Any]]) -> Response:
        telemetry.count(_endpoint(request), str(status))
        # Plain ASCII, and nothing of the request but field names: whatever came in, this can be sent back.
        return Response(json.dumps({"detail": problems}), status_code=status, media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(request, 422, [{"loc": list(problem["loc"]), "msg": problem["msg"]} for problem in error.errors()])

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        return refuse(request, 404 if isinstance(error, UnknownItemError) else 422, [{"loc": [], "msg": str(error)}])

    @app.exception_handler(TritonError)
    async def unavailable(request: Request, error: TritonError) -> Response:
        return refuse(request, 503, [{"loc": [], "msg": str(error)}])

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return refuse(request, error.status_code, [{"loc": [], "msg": str(error.detail)}])

    return app


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _endpoint(request: Request) -> str:
    """A bounded set of names, whatever paths clients invent."""
    path = request.url.path
    known = {"/v1/recommend": "recommend", "/v1/similar": "similar"}
    return known.get(path, "items" if path.startswith("/v1/items/") else "other")
