"""Settings of a replica, and the construction of its stages."""

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from passerelle.bundle import open_bundle
from passerelle.config import Config
from passerelle.errors import UserError
from serving.catalogue.catalogue import item_columns
from serving.catalogue.columns import Columns
from serving.config import ServingConfig
from serving.events.base import EventStore
from serving.events.intake import open_store
from serving.retrievers.retriever import SCAN_LIMIT
from serving.stages.lookup import EmbeddingLookup
from serving.stages.ordering import Ordering
from serving.stages.ranking import Ranking
from serving.stages.retrieval import Retrieval
from serving.stages.types import Stage, Stages
from serving.triton.client import TritonClient
from serving.triton.resilience import ResilientInference

StageName = Literal["lookup", "retrieval", "ranking", "ordering"]


class GraphSettings(Config):
    """Settings that every replica builds its stages from."""

    bundle: Path
    """A bundle that every node can read."""
    bundle_id: str
    """Its id when the service was started: a replica that starts later refuses another one."""
    version: int
    """Its version in the model repository."""
    triton: str
    """HOST:PORT of Triton's gRPC service."""
    listen: str | None = None
    """HOST:PORT that ingress replicas listen on; without it, requests come through Serve's proxies alone."""
    serving: ServingConfig = ServingConfig()
    """Playlists, rules, limits."""
    exact: bool = False
    """Scan all items even where there is an index, to compare with training, which does."""


class Dependencies:
    """Objects that the stages of one process share."""

    def __init__(self, settings: GraphSettings) -> None:
        self.settings = settings
        self.config = settings.serving
        self.bundle = open_bundle(settings.bundle)
        if self.bundle.manifest.bundle_id != settings.bundle_id:
            raise UserError(
                f"{settings.bundle}: bundle {self.bundle.manifest.bundle_id} stands there now, and the "
                f"service was started with {settings.bundle_id}: publish and serve it"
            )
        self.inference = ResilientInference(TritonClient(settings.triton))

    @cached_property
    def items(self) -> Columns:
        """The columns of items."""
        return item_columns(self.bundle)

    @cached_property
    def events(self) -> EventStore | None:
        """The event store, opened once: the lookup reads what the intake writes."""
        return open_store(self.config.events)


def build_lookup(dependencies: Dependencies) -> EmbeddingLookup:
    """Returns the lookup stage."""
    return EmbeddingLookup(
        dependencies.bundle,
        dependencies.inference,
        dependencies.settings.version,
        dependencies.config,
        dependencies.events,
    )


def build_retrieval(dependencies: Dependencies) -> Retrieval:
    """Returns the retrieval stage."""
    return Retrieval(
        dependencies.bundle,
        dependencies.config,
        dependencies.events,
        dependencies.items,
        scan_limit=sys.maxsize if dependencies.settings.exact else SCAN_LIMIT,
    )


def build_ranking(dependencies: Dependencies) -> Ranking:
    """Returns the ranking stage."""
    return Ranking(dependencies.bundle, dependencies.inference, dependencies.settings.version)


def build_ordering(dependencies: Dependencies) -> Ordering:
    """Returns the ordering stage."""
    return Ordering(dependencies.bundle, dependencies.config, dependencies.items)


STAGE_BUILDERS: Mapping[StageName, Callable[[Dependencies], Stage]] = {
    "lookup": build_lookup,
    "retrieval": build_retrieval,
    "ranking": build_ranking,
    "ordering": build_ordering,
}
"""The builder of each stage by the name of its deployment."""


def local_stages(dependencies: Dependencies) -> Stages:
    """Returns all stages in this process."""
    return Stages(
        lookup=build_lookup(dependencies),
        retrieval=build_retrieval(dependencies),
        ranking=build_ranking(dependencies),
        ordering=build_ordering(dependencies),
    )
