"""The explorer: a page that shows recommendations, and the endpoints that it calls."""

from importlib import resources
from typing import Any

import pyarrow.compute as pc
from fastapi import FastAPI
from fastapi.responses import Response

from passerelle.bundle import Bundle
from passerelle.config import Config
from serving.api.paths import ANY_ID
from serving.config import DEFAULT
from serving.recommender import Recommender
from serving.schemas.base import AnswerId
from serving.schemas.recommend import HistoryResponse

PAGE = "explorer.html"
_MAX_VALUES = 40
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
    )
)


class ExperimentInfo(Config):
    """An experiment and its variants."""

    name: str
    playlist: str
    variants: tuple[str, ...]


class ExplorerInfo(Config):
    """The choices that the page offers."""

    model: str
    model_version: int
    num_items: int
    num_users: int
    users: tuple[AnswerId, ...]
    """Some known users."""
    categories: dict[str, tuple[str, ...]]
    """The most frequent values by column of items."""
    several: tuple[str, ...]
    """The columns of which an item may have several values."""
    playlists: tuple[str, ...]
    experiments: tuple[ExperimentInfo, ...]


def add_explorer(
    app: FastAPI, recommender: Recommender, bundle: Bundle, refusals: dict[int | str, dict[str, Any]]
) -> None:
    """Adds the page at `/` and its endpoints.

    Args:
        refusals: answers of any endpoint that are no success, for the description.
    """
    page = resources.files("serving.api").joinpath(PAGE).read_bytes()
    info = _info(recommender, bundle)

    @app.get("/", include_in_schema=False)
    async def explorer() -> Response:
        """Returns the page, which loads nothing from other sites."""
        return Response(
            page, media_type="text/html; charset=utf-8", headers={"content-security-policy": _POLICY}
        )

    @app.get("/v1/explorer", response_model=ExplorerInfo, responses=refusals)
    async def choices() -> Response:
        """Returns the users, categories, playlists and experiments to choose from."""
        return Response(recommender.answer_json(info), media_type="application/json")

    # The second path cannot be told from that of a user `ID/history`, and is for clients of before.
    @app.get("/v1/history", response_model=HistoryResponse, responses=refusals)
    @app.get(f"/v1/users/{{user_id:{ANY_ID}}}/history", include_in_schema=False)
    async def history(user_id: str) -> Response:
        """Returns the newest known events of a user."""
        answer = await recommender.history(user_id)
        return Response(recommender.answer_json(answer), media_type="application/json")


def _info(recommender: Recommender, bundle: Bundle) -> ExplorerInfo:
    manifest, config = bundle.manifest, recommender.config
    kinds = {
        feature.name: feature.kind
        for feature in manifest.item_features
        if feature.kind in ("categorical", "multi_categorical")
    }
    categories = {}
    for name, kind in kinds.items():
        values = bundle.items.column(name).combine_chunks()
        counted = pc.value_counts(
            values.flatten() if kind == "multi_categorical" else values.drop_null()
        ).to_pylist()
        frequent = sorted(counted, key=lambda one: (-one["counts"], str(one["values"])))[:_MAX_VALUES]
        categories[name] = tuple(str(one["values"]) for one in frequent)
    return ExplorerInfo(
        model=manifest.model,
        model_version=recommender.version,
        num_items=manifest.num_items,
        num_users=manifest.num_users,
        users=tuple(bundle.reference().user_ids()[:30]),
        categories=categories,
        several=tuple(name for name, kind in kinds.items() if kind == "multi_categorical"),
        playlists=tuple(dict.fromkeys([DEFAULT, *config.playlists])),
        experiments=tuple(
            ExperimentInfo(
                name=name,
                playlist=experiment.playlist,
                variants=tuple(variant.name for variant in experiment.variants),
            )
            for name, experiment in config.experiments.items()
        ),
    )
