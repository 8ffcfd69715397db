"""Traces of requests: a span a request and a span a stage, sent to an OpenTelemetry collector. The only file that knows `opentelemetry`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from passerelle.errors import UserError, install_extra

SERVICE = "passerelle"
_QUIET: Any = {
    "record_exception": False,
    "set_status_on_exception": False,
}  # what is said of a mistake names who made it


class Tracer:
    """Makes spans, or does nothing.

    Args:
        endpoint: of a collector that takes OTLP over HTTP, `http://HOST:4318`; None does nothing.
        exporter: instead of one that sends.

    Raises:
        UserError: an endpoint is given and the client is not installed.
    """

    def __init__(self, endpoint: str | None, *, exporter: Any = None) -> None:
        self._tracer: Any = None
        if endpoint is None and exporter is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:  # an extra
            raise UserError(f"tracing.endpoint: its client is not here: {install_extra('otel')}") from None
        exporter = exporter or OTLPSpanExporter(endpoint=f"{str(endpoint).rstrip('/')}/v1/traces")
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[None]:
        """The span of a request, below the caller's where it names one (`traceparent`)."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, context=self._propagator.extract(headers), **_QUIET):
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The span of a stage, below that of its request."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, **_QUIET):
            yield

    def note(self, **attributes: str | int | bool) -> None:
        """Attributes of the request's span; nothing that tells who asked."""
        if self._tracer is None:
            return
        from opentelemetry import trace

        trace.get_current_span().set_attributes(attributes)

    def close(self) -> None:
        """Send what is left."""
        if self._tracer is not None:
            self._provider.shutdown()
