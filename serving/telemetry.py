"""Prometheus metrics of one replica: the only file that knows `prometheus_client`."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from serving.schemas import Timings

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Telemetry:
    """Counts requests by endpoint and outcome, and how long each stage takes, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("passerelle_requests", "Requests answered, by outcome.", ["endpoint", "outcome"], registry=self._registry)
        self._stages = Histogram(
            "passerelle_stage_seconds", "Time of one request in each stage.", ["stage"], buckets=_SECONDS, registry=self._registry
        )

    def count(self, endpoint: str, outcome: str) -> None:
        """One request: `outcome` is `ok`, the name of a fallback, or the HTTP status of a refusal."""
        self._requests.labels(endpoint, outcome).inc()

    def observe(self, timings: Timings) -> None:
        """The stages of one recommendation."""
        for stage in Timings.model_fields:
            self._stages.labels(stage).observe(getattr(timings, stage) / 1e3)

    def exposition(self) -> bytes:
        """Everything, in the text format that Prometheus reads."""
        return generate_latest(self._registry)
