"""The HTTP interface, as a FastAPI application over a `Recommender`."""

import json
import logging
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from passerelle import __version__
from passerelle.errors import UserError
from serving.api.admission import RETRY_AFTER_S, AdmissionMiddleware, read_keys
from serving.api.errors import ErrorMiddleware
from serving.api.explorer import add_explorer
from serving.deadline import DeadlineError
from serving.events.base import EventStoreError
from serving.events.intake import EventIntake
from serving.item_info import UnknownItemError
from serving.observability.metrics import CONTENT_TYPE, Telemetry
from serving.recommender import Recommender
from serving.schemas.events import EventsRequest, EventsResponse, ForgottenResponse
from serving.schemas.recommend import (
    ItemResponse,
    Problems,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
    SimilarResponse,
)
from serving.triton.inference import InferenceError
from serving.watched_file import WatchedFile

_REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problems, "description": "The body did not come."},
    401: {"model": Problems, "description": "No key of this service, where it asks for one."},
    413: {"model": Problems, "description": "The body is too large."},
    422: {"model": Problems, "description": "The request does not fit; `loc` names the field."},
    429: {
        "model": Problems,
        "description": "Too many requests at a time, or of one caller: ask again after `Retry-After` seconds.",
    },
    503: {
        "model": Problems,
        "description": "The time of the request is over, or what it needs does not answer.",
    },
}
_MOST_PROBLEMS = 50
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problems, "description": "No such item."}}
_ENDPOINTS = {"/v1/recommend": "recommend", "/v1/similar": "similar", "/v1/events": "events"}

logger = logging.getLogger(__name__)


def build_app(
    recommender: Recommender, intake: EventIntake | None = None, telemetry: Telemetry | None = None
) -> FastAPI:
    """Bind the endpoints to a recommender and, where events are kept, to their store."""
    app = FastAPI(
        title="Passerelle",
        version=__version__,
        description="Recommendations: lookup, retrieval, ranking, ordering.",
    )
    telemetry = telemetry or Telemetry()
    limits = recommender.config.limits
    keys = None if limits.api_keys_file is None else WatchedFile(limits.api_keys_file, read_keys)
    app.add_middleware(
        AdmissionMiddleware,
        limits=limits,
        keys=keys,
        refused=lambda status: telemetry.count("gate", str(status)),
    )
    if limits.allowed_origins:  # outside of the gate: a browser asks without a key whether it may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.allowed_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )

    app.add_middleware(ErrorMiddleware, failed=lambda path: telemetry.count(_endpoint(path), "500"))

    @app.post("/v1/recommend", response_model=RecommendResponse, responses=_REFUSALS)
    async def recommend(request: RecommendRequest, http: Request) -> Response:
        """The best items for a user or a history; where too little is known, what the rule for cold users says (`fallback`)."""
        with recommender.tracer.request("recommend", http.headers):
            answer = await recommender.recommend(request)
        telemetry.recommended(answer)
        return _json(answer)

    @app.post("/v1/similar", response_model=SimilarResponse, responses={**_REFUSALS, **_NOT_FOUND})
    async def similar(request: SimilarRequest, http: Request) -> Response:
        """The items most like one item, or like several together."""
        with recommender.tracer.request("similar", http.headers):
            answer = await recommender.similar(request)
        telemetry.count("similar", "ok")
        return _json(answer)

    @app.get("/v1/items/{item_id:path}", response_model=ItemResponse, responses={**_REFUSALS, **_NOT_FOUND})
    async def item(item_id: str) -> Response:
        """What the catalogue says of one item."""
        answer = recommender.item(item_id)
        telemetry.count("items", "ok")
        return _json(answer)

    if limits.explorer:
        add_explorer(app, recommender, recommender.bundle)
    if intake is not None:
        _add_events(app, intake, telemetry)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        responses={503: {"description": "Triton does not serve this version: answers are fallbacks."}},
    )
    async def readyz() -> Response:
        """Requests will be answered in full: Triton serves both networks of the active version. `events` tells of their store."""
        checks = {"networks": await recommender.ready()}
        if intake is not None:
            checks["events"] = await _works(intake)
        ready = checks["networks"]
        content = {"ready": ready, "model_version": recommender.version, "checks": checks}
        return Response(json.dumps(content), status_code=200 if ready else 503, media_type="application/json")

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and histograms of this replica for Prometheus."""
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE)

    _add_refusals(app, telemetry)
    return app


def _add_events(app: FastAPI, intake: EventIntake, telemetry: Telemetry) -> None:
    @app.post("/v1/events", status_code=202, response_model=EventsResponse, responses=_REFUSALS)
    async def events(request: EventsRequest) -> Response:
        """Keep what users did: durable when answered, and part of their next recommendation. An event id that is sent again counts once."""
        answer = await intake.accept(request, time.time_ns() // 1_000_000)
        telemetry.count("events", "ok")
        telemetry.events(answer.accepted, answer.duplicates)
        return _json(answer, 202)

    @app.delete("/v1/users/{user_id:path}", response_model=ForgottenResponse, responses=_REFUSALS)
    async def forget(user_id: str) -> Response:
        """Erase a user's events and what stands for the user in logs; the history in the bundle is no longer used."""
        answer = await intake.forget(user_id)
        telemetry.count("users", "ok")
        return _json(answer)


async def _works(intake: EventIntake) -> bool:
    try:
        await intake.store.ping()
    except EventStoreError:
        return False
    return True


def _add_refusals(app: FastAPI, telemetry: Telemetry) -> None:
    def refuse(request: Request, status: int, problems: list[dict[str, Any]]) -> Response:
        telemetry.count(_endpoint(request.url.path), str(status))
        headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else None
        # Plain ASCII, and nothing of the request but field names: whatever came in, this can be sent back.
        return Response(
            json.dumps({"detail": problems}),
            status_code=status,
            media_type="application/json",
            headers=headers,
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(
            request,
            422,
            [
                {"loc": list(problem["loc"]), "msg": problem["msg"]}
                for problem in error.errors()[:_MOST_PROBLEMS]
            ],
        )

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        return refuse(
            request, 404 if isinstance(error, UnknownItemError) else 422, [{"loc": [], "msg": str(error)}]
        )

    async def unavailable(request: Request, error: Exception) -> Response:
        logger.warning("503: %s", error)
        return refuse(request, 503, [{"loc": [], "msg": str(error)}])

    for kind in (InferenceError, DeadlineError, EventStoreError):
        app.add_exception_handler(kind, unavailable)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return refuse(request, error.status_code, [{"loc": [], "msg": str(error.detail)}])


def _json(answer: BaseModel, status: int = 200) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json", status_code=status)


def _endpoint(path: str) -> str:
    """A bounded set of names, whatever paths clients invent."""
    return _ENDPOINTS.get(
        path,
        "items" if path.startswith("/v1/items/") else "users" if path.startswith("/v1/users/") else "other",
    )
