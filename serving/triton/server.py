"""A Triton Inference Server that this process starts and stops.

It is the binary of the `nvidia-pytriton` wheel with our `onnxruntime` backend.

    with TritonServer(Path("model_repository")) as server:
        client = TritonClient(server.grpc_address)

It listens on loopback only, loads no model by itself, and does not outlive the process that started it.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from passerelle.errors import UserError
from passerelle.files import cache_directory, new_directory
from serving.addresses import open_url
from serving.triton.plain_paths import PlainPaths
from serving.triton.ports import free_ports, require_free

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0

# The kernel sends Triton SIGTERM when the thread that started it ends, also by kill -9.
# The check covers a parent that ended before the call of prctl.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_HARMLESS = ("CudaDriverHelper", "NVML", "DCGM", "pinned system memory")
_ERROR_LINE = re.compile(r"^(E\d{4} |error:|Error|Failed|failed|.*No module named|.*Exception)")


class TritonServer:
    """The embedded server; a context manager that yields once Triton answers.

    `start` must be called from a thread that lives as long as the server should.
    Linux ties the child to the thread, not to the process.

    Args:
        repository: model repository, as NVIDIA's container reads it.
        grpc_port: port for clients; a free one when absent.
    """

    def __init__(self, repository: Path, *, grpc_port: int | None = None) -> None:
        self._repository = repository.resolve()
        http_port, metrics_port, free_port = free_ports(3, HOST)
        self._fixed_port = grpc_port
        self.grpc_address = f"{HOST}:{grpc_port or free_port}"
        self.http_address = f"{HOST}:{http_port}"
        self.metrics_address = f"{HOST}:{metrics_port}"
        self.log_path = (
            cache_directory() / "logs" / f"triton-{os.getpid()}-{self.grpc_address.rpartition(':')[2]}.log"
        )
        self._plain_paths = PlainPaths()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Starts the process and returns at once.

        Raises:
            UserError: the repository or the server binary does not exist, or the port is busy.
        """
        assert self._process is None, "started twice"
        if not self._repository.is_dir():
            raise UserError(
                f"{self._repository}: no such model repository: make one with `passerelle publish`"
            )
        if self._fixed_port is not None:
            require_free(self._fixed_port, HOST, "stop it or choose another Triton port")
        wheel = wheel_directory()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log_path.open("wb")
        arguments = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={self._plain_paths.link(self._repository)}",
            f"--backend-directory={self._plain_paths.copy(_backend_directory(wheel))}",
            "--model-control-mode=explicit",
            *_address_options("grpc", self.grpc_address),
            *_address_options("http", self.http_address),
            *_address_options("metrics", self.metrics_address),
            f"--exit-timeout-secs={int(STOP_TIMEOUT_S)}",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-ESc", _LAUNCHER, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=server_environment(wheel),
            # Ctrl-C in the terminal must reach this process alone, which stops Triton last.
            start_new_session=True,
        )

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until the server answers.

        Raises:
            UserError: the server ended, or was not ready in time; with Triton's own last error lines.
        """
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            self.require_running()
            if time.monotonic() > deadline:
                errors = self.last_errors()
                raise UserError(
                    f"Triton was not ready after {timeout_s:.0f} s: {errors} (log: {self.log_path})"
                )
            time.sleep(0.05)

    @property
    def started(self) -> bool:
        """Whether the process was started, even if it has ended since."""
        return self._process is not None

    @property
    def ended(self) -> bool:
        """Whether the process was started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def ends_within(self, seconds: float) -> bool:
        """Waits for the process to end by itself, at most this long, and returns whether it has."""
        assert self._process is not None, "not started"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.ended

    def require_running(self) -> None:
        """Checks that the process has not ended.

        Raises:
            UserError: the process has ended; with Triton's own last error lines.
        """
        assert self._process is not None, "not started"
        status = self._process.poll()
        if status is not None:
            raise UserError(f"Triton ended with status {status}: {self.last_errors()} (log: {self.log_path})")

    def stop(self) -> None:
        """Stops the process and removes its log; a log that holds the reason of a failure stays."""
        process, self._process = self._process, None
        if process is None:
            return
        ended_by_itself = process.poll() is not None
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        # The stubs of its backend outlive a server that was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._plain_paths.remove()
        if self._log is not None:
            self._log.close()
        if not ended_by_itself:
            self.log_path.unlink(missing_ok=True)

    def last_errors(self, count: int = 3) -> str:
        """Returns Triton's own last error lines, or its last lines when none looks like an error."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line for line in lines if line.strip() and not any(word in line for word in _HARMLESS)]
        errors = [line for line in lines if _ERROR_LINE.match(line)] or lines
        return " | ".join(errors[-count:]) or "it wrote nothing"

    def _answers(self) -> bool:
        url = f"http://{self.http_address}/v2/health/ready"
        with (
            contextlib.suppress(OSError),
            open_url(url, timeout_s=1) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _address_options(protocol: str, address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    return [f"--{protocol}-address={host}", f"--{protocol}-port={port}"]


def wheel_directory() -> Path:
    """Returns the folder of the server in nvidia-pytriton, found without importing it.

    Raises:
        UserError: nvidia-pytriton is not installed.
    """
    found = importlib.util.find_spec("pytriton")
    wheel = (
        Path(found.submodule_search_locations[0]) / "tritonserver"
        if found and found.submodule_search_locations
        else None
    )
    if wheel is None or not (wheel / "bin" / "tritonserver").is_file():
        raise UserError(
            "no embedded Triton here: `pip install --no-deps nvidia-pytriton==0.7.0`, "
            "or name a server with --triton HOST:PORT"
        )
    return wheel


def server_environment(wheel: Path) -> dict[str, str]:
    """Returns the environment of the server.

    The server needs the wheel's shared libraries.
    Its Python stub runs the first `python3` on PATH, which has to be ours, with numpy.
    """
    libraries = wheel.parent.parent / "nvidia_pytriton.libs"
    binaries = Path(sys.executable).parent
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")])),
        "PATH": os.pathsep.join(filter(None, [str(binaries), os.environ.get("PATH")])),
    }


def _backend_directory(wheel: Path) -> Path:
    """Returns a folder with Triton's Python backend and our `onnxruntime` backend.

    It is copied once for each content: Triton refuses links that lead outside of the folder.
    """
    stub = (
        wheel
        / "python_backend_stubs"
        / f"{sys.version_info.major}.{sys.version_info.minor}"
        / "triton_python_backend_stub"
    )
    if not stub.is_file():
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise UserError(f"the embedded Triton has no stub for Python {python}: use 3.11")
    sources = {
        "python/libtriton_python.so": wheel / "backends" / "python" / "libtriton_python.so",
        "python/triton_python_backend_utils.py": wheel
        / "backends"
        / "python"
        / "triton_python_backend_utils.py",
        "python/triton_python_backend_stub": stub,
        "onnxruntime/model.py": Path(__file__).parent / "backend" / "onnxruntime" / "model.py",
    }
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources.values())).hexdigest()[:16]
    directory = cache_directory() / f"triton-backends-{digest}"
    if not directory.is_dir():
        with new_directory(directory, overwrite=True) as scratch:
            for name, source in sources.items():
                (scratch / name).parent.mkdir(exist_ok=True)
                shutil.copy(source, scratch / name)
    return directory
