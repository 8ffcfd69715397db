"""Addresses of both families, and requests to this machine past every proxy."""

import http.server
import threading

import pytest

from serving.addresses import is_loopback, join_address, open_url, socket_for, split_address
from serving.triton.ports import free_ports

NO_PROXY_THERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [("127.0.0.1", 80, "127.0.0.1:80"), ("::1", 8000, "[::1]:8000"), ("::", 1, "[::]:1")],
)
def test_addresses_in_both_directions(host: str, port: int, address: str) -> None:
    assert join_address(host, port) == address
    assert split_address(address) == (host, port)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("api.localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", True),
        ("10.0.0.1", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def hosts() -> list[str]:
    """Hosts of the families that this machine has."""
    try:
        with socket_for("::1") as probe:
            probe.bind(("::1", 0))
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1", "::"]


@pytest.mark.parametrize("host", hosts())
def test_sockets_of_both_families(host: str) -> None:
    with socket_for(host) as listener:
        listener.bind((host, free_ports(1, host)[0]))
        listener.listen()
        port = listener.getsockname()[1]
        for target in {"::": ("127.0.0.1", "::1")}.get(host, (host,)):
            with socket_for(target) as client:
                client.connect((target, port))


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_this_machine_is_asked_past_a_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, NO_PROXY_THERE)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with open_url(f"http://127.0.0.1:{server.server_port}/", timeout_s=10) as answer:
        assert answer.status == 200
    thread.join()
    server.server_close()
