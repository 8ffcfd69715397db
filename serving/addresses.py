"""Addresses of listeners, IPv4 and IPv6, and requests to this machine, which no proxy is asked for."""

import ipaddress
import socket
import urllib.request
from typing import Any


def join_address(host: str, port: int) -> str:
    """Returns `HOST:PORT`, with brackets around a host of IPv6.

    >>> join_address("127.0.0.1", 80), join_address("::1", 80)
    ('127.0.0.1:80', '[::1]:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Returns the host and the port of `HOST:PORT`.

    >>> split_address("[::1]:80")
    ('::1', 80)
    """
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def socket_for(host: str) -> socket.socket:
    """Returns an unbound socket of the family of a host; `::` stands for IPv4 too."""
    if ":" not in host:
        return socket.socket()
    made = socket.socket(socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
    return made


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine as it sees itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _ip_address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_unspecified(host: str) -> bool:
    """Returns whether a host stands for every address of this machine.

    >>> is_unspecified("0.0.0.0"), is_unspecified("::"), is_unspecified("127.0.0.1")
    (True, True, False)
    """
    address = _ip_address(host)
    return address is not None and address.is_unspecified


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns the address that a host is, None where it is a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def open_url(url: str, timeout_s: float) -> Any:
    """Opens a URL of this machine, whatever proxy the environment names.

    Raises:
        OSError: as `urllib.request.urlopen` does.
    """
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout_s)
