"""Spans of requests and stages."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from passerelle.bundle import Bundle
from serving.api.app import build_app
from serving.observability.tracing import Tracer
from tests.serving.conftest import recommender_of
from tests.support.asgi import recommend
from tests.support.inference import OnnxInference
from tests.support.waiting import eventually


def test_spans_of_a_request_and_its_stages(bundle: Bundle) -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer(None, exporter=exporter)
    recommender = recommender_of(bundle, OnnxInference(bundle), 7, tracer=tracer)
    caller = "0af7651916cd43dd8448eb211c80319c"
    recommend(build_app(recommender), {"user_id": 1003}, {"traceparent": f"00-{caller}-b7ad6b7169203331-01"})
    tracer.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"recommend", "lookup", "retrieval", "ranking", "ordering"}
    assert all(f"{span.context.trace_id:032x}" == caller for span in spans.values() if span.context)
    request = spans["recommend"]
    assert request.context is not None
    assert all(
        span.parent and span.parent.span_id == request.context.span_id
        for name, span in spans.items()
        if name != "recommend"
    )
    assert request.attributes is not None
    assert request.attributes["playlist"] == "default" and not any(
        "1003" in str(value) for value in request.attributes.values()
    )


def test_spans_reach_a_collector(bundle: Bundle) -> None:
    received: list[tuple[str, int]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, len(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        tracer = Tracer(f"http://127.0.0.1:{server.server_port}")
        recommend(
            build_app(recommender_of(bundle, OnnxInference(bundle), 7, tracer=tracer)), {"user_id": 1003}
        )
        tracer.close()
        eventually(lambda: received)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert received and received[0][0] == "/v1/traces" and received[0][1] > 100
