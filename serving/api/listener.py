"""HTTP served by the replica itself, beside Serve's proxy: the only file that imports `uvicorn`.

Through the proxy a request takes three more hops between processes: 16 ms instead of 6.
"""

import asyncio
import socket

import uvicorn
from fastapi import FastAPI

from passerelle.errors import UserError
from serving.addresses import socket_for, split_address


class Listener:
    """Serves an application on an address from the running event loop, until the process ends.

    Replicas on one machine may share an address: the kernel spreads connections over them.

    Args:
        app: the application.
        address: `HOST:PORT`.

    Raises:
        UserError: the address is in use or not one of this machine.
    """

    def __init__(self, app: FastAPI, address: str) -> None:
        host, port = split_address(address)
        self._address = address
        self._socket = socket_for(host)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {address}: {error.strerror}") from None
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        self._task = asyncio.get_running_loop().create_task(server.serve(sockets=[self._socket]))

    def require_running(self) -> None:
        """Checks that requests are still accepted.

        Raises:
            RuntimeError: the server has ended.
        """
        if self._task.done():
            raise RuntimeError(f"nothing listens on {self._address} any more")
