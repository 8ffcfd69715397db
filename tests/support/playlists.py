"""Configurations and requests for tests of playlists."""

import asyncio
from pathlib import Path
from typing import Any

from passerelle.bundle import Bundle
from passerelle.config import validate
from serving.config import ServingConfig
from serving.recommender import Recommender
from serving.schemas.recommend import RecommendRequest, RecommendResponse
from tests.serving.conftest import recommender_of
from tests.support.inference import OnnxInference
from tests.support.offers import NOW_MS

EVERY_SOURCE = ["personal", "similar", "popular", "trending", "new", "near", "soon"]


def source(kind: str, **more: Any) -> dict[str, Any]:
    columns = {"new": "offer.starts", "soon": "offer.starts", "near": "offer.place"}
    return {"kind": kind, **({"column": columns[kind]} if kind in columns else {}), **more}


def config_with(**sections: Any) -> ServingConfig:
    return validate(ServingConfig, sections, "test")


def config_of(offers_file: Path, **sections: Any) -> ServingConfig:
    offer_section = {
        "file": str(offers_file),
        "place_column": "place",
        "price_column": "price",
        **sections.pop("offers", {}),
    }
    return config_with(offers=offer_section, **sections)


def recommender_with(bundle: Bundle, config: ServingConfig) -> Recommender:
    return recommender_of(bundle, OnnxInference(bundle), 7, config)


def ask(recommender: Recommender, **request: Any) -> RecommendResponse:
    context = {"timestamp_ms": NOW_MS, **request.pop("context", {})}
    return asyncio.run(
        recommender.recommend(RecommendRequest.model_validate({"context": context, **request}))
    )


def ids(answer: Any) -> list[Any]:
    return [item.item_id for item in answer.items]
