"""Traces with a span for each request and each stage, sent to an OpenTelemetry collector.

The only file that imports `opentelemetry`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from passerelle.errors import UserError, install_extra

SERVICE = "passerelle"
_WITHOUT_EXCEPTIONS: Any = {"record_exception": False, "set_status_on_exception": False}
"""Messages of exceptions may hold ids."""


class Tracer:
    """Makes spans, or does nothing.

    Args:
        endpoint: of a collector that accepts OTLP over HTTP, `http://HOST:4318`; None makes no spans.
        exporter: replaces the one that sends to `endpoint`.

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
        except ImportError:
            raise UserError(f"tracing.endpoint: its client is not here: {install_extra('otel')}") from None
        exporter = exporter or OTLPSpanExporter(endpoint=f"{str(endpoint).rstrip('/')}/v1/traces")
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[None]:
        """Opens the span of a request, below the caller's (`traceparent`) if there is one."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(
            name, context=self._propagator.extract(headers), **_WITHOUT_EXCEPTIONS
        ):
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Opens the span of a stage, as a child of the request's."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, **_WITHOUT_EXCEPTIONS):
            yield

    def note(self, **attributes: str | int | bool) -> None:
        """Sets attributes of the request's span; callers pass nothing that identifies the user."""
        if self._tracer is None:
            return
        from opentelemetry import trace

        trace.get_current_span().set_attributes(attributes)

    def close(self) -> None:
        """Sends the remaining spans."""
        if self._tracer is not None:
            self._provider.shutdown()
