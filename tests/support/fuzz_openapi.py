"""A service over a small bundle, asked by Schemathesis for what its OpenAPI description allows and forbids.

    make fuzz

Networks run in this process, everything else is what `passerelle serve` has.
"""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import uvicorn

from passerelle.bundle import open_bundle
from passerelle.config import validate
from serving.api.app import build_app
from serving.config import ServingConfig
from serving.events.intake import EventIntake
from serving.events.sqlite_store import SqliteEventStore
from serving.triton.ports import free_ports
from tests.support.bundles import Shape, build_bundle
from tests.support.inference import OnnxInference
from tests.support.playlists import recommender_of
from tests.support.waiting import eventually

HOST = "127.0.0.1"
CONFIG = {
    "playlists": {"books": {"sources": [{"kind": "personal"}, {"kind": "trending"}]}},
    "experiments": {"shelf": {"playlist": "books", "variants": [{"name": "a", "playlist": "default"}]}},
    # The fuzzer sends as fast as it can.
    "limits": {"max_expected_ms": 1e9, "max_large_bytes_per_s": 10**9},
}


def main() -> int:
    """Runs Schemathesis, whose program and further options are the arguments; returns its status."""
    program, *options = sys.argv[1:]
    for shape in (Shape(), Shape(string_ids=True)):
        with tempfile.TemporaryDirectory() as scratch:
            status = fuzz(Path(scratch), shape, program, options)
        if status:
            return status
    return 0


def fuzz(folder: Path, shape: Shape, program: str, options: list[str]) -> int:
    """Returns the status of Schemathesis on a service over a bundle of a shape."""
    bundle = open_bundle(build_bundle(folder / "bundle", shape))
    store = SqliteEventStore(folder / "events.sqlite")
    recommender = recommender_of(
        bundle, OnnxInference(bundle), 1, validate(ServingConfig, CONFIG, "fuzz"), store
    )
    app = build_app(recommender, EventIntake(bundle, store), host=HOST)
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    try:
        url = f"http://{HOST}:{port}/openapi.json"
        return subprocess.run([program, "run", url, *options], cwd=folder, check=False).returncode
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
