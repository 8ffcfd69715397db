"""Ports on this machine: free ones, and who holds a busy one."""

import contextlib
import socket

import psutil

from passerelle.errors import UserError
from serving.addresses import socket_for


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Returns different ports that nothing listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket_for(host)) for _ in range(count)]
        for one in sockets:
            one.bind((host, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def require_free(port: int, host: str, remedy: str) -> None:
    """Checks that a port can be listened on.

    Raises:
        UserError: naming the port, the process that holds it, and `remedy`.
    """
    with socket_for(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holder = holder_of(port)
            why = f"is held by {holder}" if holder else f"cannot be listened on ({error.strerror})"
            raise UserError(f"port {port} on {host} {why}: {remedy}") from None


def holder_of(port: int) -> str | None:
    """Returns `NAME (pid N)` of the process listening on a port; None if there is none, or it is hidden."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None
