"""Recommenders whose networks run in this process."""

from pathlib import Path

import pytest

from passerelle.bundle import Bundle
from serving.config import ServingConfig
from serving.events.base import EventStore
from serving.observability.served_log import ServedLog
from serving.observability.tracing import Tracer
from serving.recommender import Recommender
from serving.stages.lookup import EmbeddingLookup
from serving.stages.ordering import Ordering
from serving.stages.ranking import Ranking
from serving.stages.retrieval import Retrieval
from serving.stages.types import Stages
from serving.triton.inference import Inference
from tests.support.inference import OnnxInference
from tests.support.offers import write_offers


def recommender_of(
    bundle: Bundle,
    inference: Inference,
    version: int,
    config: ServingConfig | None = None,
    events: EventStore | None = None,
    log: ServedLog | None = None,
    tracer: Tracer | None = None,
) -> Recommender:
    """Returns a recommender with all stages over a bundle."""
    stages = Stages(
        EmbeddingLookup(bundle, inference, version, config, events),
        Retrieval(bundle, config),
        Ranking(bundle, inference, version),
        Ordering(bundle, config),
    )
    return Recommender(bundle, version, stages, config=config, log=log, tracer=tracer)


@pytest.fixture(scope="session")
def recommender(bundle: Bundle) -> Recommender:
    """Version 7, int64 ids."""
    return recommender_of(bundle, OnnxInference(bundle), 7)


@pytest.fixture(scope="session")
def unicode_recommender(unicode_bundle: Bundle) -> Recommender:
    """Version 7, string ids."""
    return recommender_of(unicode_bundle, OnnxInference(unicode_bundle), 7)


@pytest.fixture(scope="session")
def offers(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `write_offers`."""
    return write_offers(bundle, tmp_path_factory.mktemp("offers") / "offers.parquet")
