"""What keeps a Triton from being started at all."""

import socket
from pathlib import Path

import psutil
import pytest

from passerelle.errors import UserError
from serving.triton.ports import free_ports, holder_of, require_free
from serving.triton.server import TritonServer


def test_busy_port_names_the_port_and_the_process(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} on 127\.0\.0\.1 is held by \S+ \(pid \d+\)"):
            TritonServer(tmp_path, grpc_port=port).start()
        assert str(psutil.Process().pid) in (holder_of(port) or "")
    require_free(port, "127.0.0.1", "no remedy needed")
    assert len(set(free_ports(5))) == 5


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model repository: make one with `passerelle publish`"):
        TritonServer(tmp_path / "absent").start()
