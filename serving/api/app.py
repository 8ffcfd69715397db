"""The HTTP interface, as a FastAPI application over a `Recommender`."""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from passerelle import __version__
from passerelle.errors import UserError
from serving.api.admission import RETRY_AFTER_S, AdmissionMiddleware, read_keys
from serving.api.errors import ErrorMiddleware
from serving.api.explorer import add_explorer
from serving.api.json_bodies import JsonRoute
from serving.api.openapi import describe
from serving.api.origins import OriginMiddleware
from serving.api.paths import ANY_ID, HeadMiddleware
from serving.deadline import DeadlineError
from serving.events.base import EventStoreError
from serving.events.intake import EventIntake
from serving.item_info import UnknownItemError
from serving.observability.metrics import CONTENT_TYPE, Telemetry
from serving.recommender import Recommender
from serving.schemas.events import EventsRequest, EventsResponse, ForgottenResponse
from serving.schemas.recommend import (
    ConflictError,
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
    401: {"model": Problems, "description": "No key of this service, where it asks for one."},
    403: {"model": Problems, "description": "`Host` or `Origin` is of another site."},
    408: {"model": Problems, "description": "The body did not come."},
    409: {"model": Problems, "description": "Fields contradict each other: lists of different lengths."},
    413: {"model": Problems, "description": "The body is too large."},
    422: {"model": Problems, "description": "The request does not fit; `loc` names the field."},
    429: {
        "model": Problems,
        "description": "Too many requests, in flight or of one caller: ask again after `Retry-After` s.",
    },
    503: {
        "model": Problems,
        "description": "The time of the request is over, or what it needs does not answer.",
    },
}
_MAX_PROBLEMS = 50
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problems, "description": "No such item."}}
_ENDPOINTS = {"/v1/recommend": "recommend", "/v1/similar": "similar", "/v1/events": "events"}

logger = logging.getLogger(__name__)


def build_app(
    recommender: Recommender,
    intake: EventIntake | None = None,
    telemetry: Telemetry | None = None,
    host: str | None = None,
) -> FastAPI:
    """Returns the HTTP application.

    Args:
        recommender: answers the requests.
        intake: takes events; without it there is no `/v1/events`.
        telemetry: counts requests.
        host: address that the service listens on; None where it is not known.
    """
    app = FastAPI(
        title="Passerelle",
        version=__version__,
        description="Recommendations: lookup, retrieval, ranking, ordering.",
    )
    app.router.route_class = JsonRoute
    telemetry = telemetry or Telemetry()
    limits = recommender.config.limits
    # Without the file, or a key in it, nobody is admitted.
    nobody: tuple[bytes, ...] = ()
    keys = (
        None if limits.api_keys_file is None else WatchedFile(limits.api_keys_file, read_keys, without=nobody)
    )
    app.add_middleware(
        AdmissionMiddleware,
        limits=limits,
        keys=keys,
        refused=lambda status: telemetry.count("admission", str(status)),
        num_abandoned=lambda: recommender.stages.retrieval.num_abandoned,
    )
    if keys is None or limits.allowed_hosts:
        app.add_middleware(
            OriginMiddleware,
            host=host,
            allowed_hosts=limits.allowed_hosts,
            allowed_origins=("*",) if keys is not None else limits.allowed_origins,
            refused=lambda status: telemetry.count("admission", str(status)),
        )
    # Outside of the admission: a browser's preflight request carries no key.
    if limits.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.allowed_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )

    app.add_middleware(HeadMiddleware)
    app.add_middleware(ErrorMiddleware, failed=lambda path: telemetry.count(_endpoint(path), "500"))

    @app.post("/v1/recommend", response_model=RecommendResponse, responses=_REFUSALS)
    async def recommend(request: RecommendRequest, http: Request) -> Response:
        """Returns the best items for a user or a history.

        Where too little is known, the sources of the rule for cold users give the items (`fallback`).
        """
        with recommender.tracer.request("recommend", http.headers):
            answer = await recommender.recommend(request)
        telemetry.recommended(answer)
        return _json(recommender.answer_json(answer))

    @app.post("/v1/similar", response_model=SimilarResponse, responses={**_REFUSALS, **_NOT_FOUND})
    async def similar(request: SimilarRequest, http: Request) -> Response:
        """Returns the items most like one item, or like several together."""
        with recommender.tracer.request("similar", http.headers):
            answer = await recommender.similar(request)
        telemetry.count("similar", "ok")
        return _json(recommender.answer_json(answer))

    @app.get("/v1/items", response_model=ItemResponse, responses={**_REFUSALS, **_NOT_FOUND})
    @app.get(
        f"/v1/items/{{item_id:{ANY_ID}}}", response_model=ItemResponse, responses={**_REFUSALS, **_NOT_FOUND}
    )
    async def item(item_id: str) -> Response:
        """Returns the catalogue's description of one item.

        Clients change a path that holds the id `.` or `..`: give it as a parameter of the query.
        """
        answer = recommender.item(item_id)
        telemetry.count("items", "ok")
        return _json(recommender.answer_json(answer))

    if limits.explorer:
        add_explorer(app, recommender, recommender.bundle, _REFUSALS)
    if intake is not None:
        _add_events(app, intake, telemetry)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Returns 200 while the process is alive."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        responses={503: {"description": "Triton does not serve this version: answers are fallbacks."}},
    )
    async def readyz() -> Response:
        """Returns 200 where answers are complete: Triton serves both networks of the active version.

        `events` says whether the event store answers.
        """
        checks = {"networks": await recommender.ready()}
        if intake is not None:
            checks["events"] = await _answers(intake)
        ready = checks["networks"]
        content = {"ready": ready, "model_version": recommender.version, "checks": checks}
        return Response(json.dumps(content), status_code=200 if ready else 503, media_type="application/json")

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Returns counters and histograms of this replica for Prometheus."""
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE)

    _add_refusals(app, telemetry)
    describe(app.openapi(), recommender.bundle, recommender.config)
    return app


def _add_events(app: FastAPI, intake: EventIntake, telemetry: Telemetry) -> None:
    @app.post("/v1/events", status_code=202, response_model=EventsResponse, responses=_REFUSALS)
    async def events(request: EventsRequest) -> Response:
        """Keeps events of users: durable when answered, and part of their next recommendation.

        An event id that is sent again counts once.
        """
        answer = await intake.accept(request, time.time_ns() // 1_000_000)
        telemetry.count("events", "ok")
        telemetry.events(answer.accepted, answer.duplicates)
        return _json(answer.model_dump_json(), 202)

    @app.delete("/v1/users", response_model=ForgottenResponse, responses=_REFUSALS)
    @app.delete(f"/v1/users/{{user_id:{ANY_ID}}}", response_model=ForgottenResponse, responses=_REFUSALS)
    async def forget(user_id: str) -> Response:
        """Erases a user's events and pseudonym; the history in the bundle is no longer used.

        Clients change a path that holds the id `.` or `..`: give it as a parameter of the query.
        """
        answer = await intake.forget(user_id)
        telemetry.count("users", "ok")
        return _json(answer.model_dump_json())


async def _answers(intake: EventIntake) -> bool:
    try:
        await intake.store.ping()
    except EventStoreError:
        return False
    return True


def _add_refusals(app: FastAPI, telemetry: Telemetry) -> None:
    def refuse(
        request: Request,
        status: int,
        problems: list[dict[str, Any]],
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        telemetry.count(_endpoint(request.url.path), str(status))
        headers = {**(headers or {}), **({"retry-after": str(RETRY_AFTER_S)} if status == 503 else {})}
        # Plain ASCII, and no values of the request: whatever came in, this can be sent back.
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
                {"loc": list(problem["loc"]), "msg": _message(problem)}
                for problem in error.errors()[:_MAX_PROBLEMS]
            ],
        )

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return refuse(request, 422, [{"loc": [], "msg": str(error)}])

    @app.exception_handler(ConflictError)
    async def conflict(request: Request, error: ConflictError) -> Response:
        return refuse(request, 409, [{"loc": [], "msg": str(error)}])

    @app.exception_handler(UnknownItemError)
    async def unknown_item(request: Request, error: UnknownItemError) -> Response:
        return refuse(request, 404, [{"loc": [], "msg": str(error)}])

    async def unavailable(request: Request, error: Exception) -> Response:
        logger.warning("503: %s", error)
        return refuse(request, 503, [{"loc": [], "msg": str(error)}])

    for error_type in (InferenceError, DeadlineError, EventStoreError):
        app.add_exception_handler(error_type, unavailable)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        # Of 405, the methods that are allowed.
        return refuse(request, error.status_code, [{"loc": [], "msg": str(error.detail)}], error.headers)


def _message(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "json_invalid":
        return f"not JSON: {problem['ctx']['error']}"
    message: str = problem["msg"]
    return message


def _json(content: str, status: int = 200) -> Response:
    return Response(content, media_type="application/json", status_code=status)


def _endpoint(path: str) -> str:
    """Returns a label of a bounded set, whatever paths clients invent."""
    return _ENDPOINTS.get(
        path,
        "items"
        if path.startswith("/v1/items")
        else "users"
        if path.startswith(("/v1/users", "/v1/history"))
        else "other",
    )
