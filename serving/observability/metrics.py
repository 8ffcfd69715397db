"""Prometheus metrics of one replica: the only file that imports `prometheus_client`."""

from collections.abc import Iterator, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.registry import Collector

from serving.schemas.recommend import RecommendResponse, Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Telemetry:
    """Counts requests by endpoint and outcome and measures the stages, in a registry of its own.

    Of replicas that share an address, each scrape reaches one by chance.
    A label names the replica, so that no counter goes backwards.

    Args:
        replica: name of the replica; without it there is no such label.
    """

    def __init__(self, replica: str = "") -> None:
        self._replica = replica
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "passerelle_requests",
            "Requests answered, by outcome.",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self._stages = Histogram(
            "passerelle_stage_seconds",
            "Time of one request in each stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._degraded = Counter(
            "passerelle_degraded",
            "Answers without a component that failed.",
            ["without"],
            registry=self._registry,
        )
        self._variants = Counter(
            "passerelle_served",
            "Answers by playlist and variant.",
            ["playlist", "experiment", "variant"],
            registry=self._registry,
        )
        self._events = Counter(
            "passerelle_events", "Live events, kept and duplicate.", ["outcome"], registry=self._registry
        )
        self._recall = Gauge(
            "passerelle_index_recall",
            "Recall@100 of the index when it was built.",
            ["retriever", "passing"],
            registry=self._registry,
        )

    def count(self, endpoint: str, outcome: str) -> None:
        """Counts a request: `outcome` is `ok`, the name of a fallback, or the HTTP status of a refusal."""
        self._requests.labels(endpoint, outcome).inc()

    def recommended(self, answer: RecommendResponse) -> None:
        """Counts a recommendation and records the times of its stages."""
        self.count("recommend", answer.fallback or "ok")
        for stage in Timings.model_fields:
            self._stages.labels(stage).observe(getattr(answer.timings_ms, stage) / 1e3)
        for missing in answer.degraded:
            self._degraded.labels(missing).inc()
        self._variants.labels(answer.playlist, answer.experiment or "", answer.variant or "").inc()

    def events(self, accepted: int, duplicates: int) -> None:
        """Counts the events of one request."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)

    def index(self, retriever: str, recall: Mapping[str, float]) -> None:
        """Sets the recall of the index by the share of items that a filter lets pass."""
        for passing, value in recall.items():
            self._recall.labels(retriever, passing).set(value)

    def exposition(self) -> bytes:
        """Returns all metrics in the text format of Prometheus."""
        return generate_latest(_Labelled(self._registry, self._replica) if self._replica else self._registry)


class _Labelled(Collector):
    """The metrics of a registry with a label for the replica."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry = registry
        self._replica = replica

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, "replica": self._replica})
                for sample in metric.samples
            ]
            yield metric
