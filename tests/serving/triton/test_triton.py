"""A real Triton: answers and errors of the backend, versions side by side, and the end of the process."""

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from passerelle.bundle import Bundle, open_bundle
from passerelle.errors import UserError
from serving.triton.client import TritonClient, TritonError
from serving.triton.model_config import fitted_config
from serving.triton.ports import holder_of
from serving.triton.server import TritonServer
from tests.support.bundles import Shape, build_bundle, encoder_inputs, write_ranker
from tests.support.inference import OnnxInference
from tests.support.waiting import eventually, eventually_async

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def add_version(repository: Path, bundle: Bundle, model: str, version: int) -> None:
    """Publishes a bundle without the parity gate."""
    folder = repository / model / str(version)
    folder.mkdir(parents=True)
    shutil.copy(bundle.path / f"{model}.onnx", folder / "model.onnx")
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    (repository / model / "config.pbtxt").write_text(
        fitted_config(text, bundle.manifest.networks[model], bundle.manifest.max_history, model)
    )


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks, version 2 of the ranker with other weights, and models that cannot be loaded."""
    root = tmp_path_factory.mktemp("models")
    add_version(root, bundle, "query_encoder", 1)
    add_version(root, bundle, "ranker", 1)
    (root / "ranker" / "2").mkdir()
    write_ranker(
        root / "ranker" / "2" / "model.onnx", len(bundle.manifest.features), np.random.default_rng(99)
    )
    config = (root / "ranker" / "config.pbtxt").read_text()
    for name in ("broken", "missing", "narrow", "on_gpu", "threads", "silent"):
        (root / name / "1").mkdir(parents=True)
        shutil.copy(bundle.path / "ranker.onnx", root / name / "1" / "model.onnx")
        (root / name / "config.pbtxt").write_text(config.replace('"ranker"', f'"{name}"'))
    (root / "broken" / "1" / "model.onnx").write_bytes(b"not a network")
    (root / "missing" / "1" / "model.onnx").rename(root / "missing" / "1" / "model.onx")
    for name, old, new in (
        ("narrow", "[ 17 ]", "[ 16 ]"),
        ("on_gpu", "KIND_CPU", "KIND_GPU"),
        ("threads", 'string_value: "1"', 'string_value: "two"'),
    ):
        path = root / name / "config.pbtxt"
        path.write_text(path.read_text().replace(old, new))
    (root / "silent" / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    return root


@pytest.fixture(scope="module")
def shared_server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as running:
        yield running


def start_again(server: TritonServer) -> None:
    """As `Networks` does: the Python backend crashes once in some hundred loads."""
    server.stop()
    server.start()
    server.wait_until_ready()


@pytest.fixture
def server(shared_server: TritonServer) -> TritonServer:
    """The server of this file, which runs."""
    if shared_server.ended:
        start_again(shared_server)
    return shared_server


@pytest.fixture
def ask(server: TritonServer) -> Callable[[Callable[[TritonClient], Awaitable[Any]]], Any]:
    """Runs a coroutine function with a client; once more, from the start, where the server has crashed."""

    async def ask_once(work: Callable[[TritonClient], Awaitable[Any]]) -> Any:
        client = TritonClient(server.grpc_address)
        try:
            return await work(client)
        finally:
            await client.close()

    def run(work: Callable[[TritonClient], Awaitable[Any]]) -> Any:
        try:
            answer = asyncio.run(ask_once(work))
        except TritonError:
            if not server.ends_within(1.0):
                raise
        else:
            if not server.ended:
                return answer
        start_again(server)
        return asyncio.run(ask_once(work))

    return run


def test_answers_are_those_of_onnxruntime(ask: Any, repository: Path, bundle: Bundle) -> None:
    """Also when requests of many sizes are merged."""
    rng = np.random.default_rng(0)
    oracle = OnnxInference(bundle)
    batches = [
        rng.standard_normal((int(size), 17)).astype(np.float32) for size in rng.integers(1, 40, size=60)
    ]
    mask_BL = rng.random((3, 16)) < 0.5
    inputs = encoder_inputs(
        rng.standard_normal((3, 16, 64)).astype(np.float32), rng.integers(0, 10**12, (3, 16)), 10**12
    )
    inputs["mask"] = mask_BL

    async def work(client: TritonClient) -> tuple[Any, Any]:
        await client.load("query_encoder", repository / "query_encoder" / "config.pbtxt", [1])
        await client.load("ranker", repository / "ranker" / "config.pbtxt", [1])
        scores = await asyncio.gather(*(client.infer("ranker", 1, {"features": batch}) for batch in batches))
        return await client.infer("query_encoder", 1, inputs), scores

    query, scores = ask(work)
    np.testing.assert_allclose(
        query["query"], asyncio.run(oracle.infer("query_encoder", 1, inputs))["query"], atol=1e-5
    )
    for batch, score in zip(batches, scores, strict=True):
        np.testing.assert_allclose(
            score["score"], asyncio.run(oracle.infer("ranker", 1, {"features": batch}))["score"], atol=1e-6
        )


def test_model_of_another_width(ask: Any, repository: Path, tmp_path: Path) -> None:
    """A bundle of dim 32 with short histories gets a configuration of its own, warm-up included."""
    small = Shape(num_items=30, num_users=5, num_reference_users=2, dim=32, max_history=8, num_candidates=10)
    bundle = open_bundle(build_bundle(tmp_path / "bundle", small))
    add_version(repository / "other", bundle, "query_encoder", 4)
    shutil.move(repository / "other" / "query_encoder", repository / "encoder_of_32")
    shutil.rmtree(repository / "other")
    config = repository / "encoder_of_32" / "config.pbtxt"
    config.write_text(config.read_text().replace('"query_encoder"', '"encoder_of_32"'))
    inputs = encoder_inputs(np.ones((2, 8, 32), dtype=np.float32))

    async def work(client: TritonClient) -> Any:
        await client.load("encoder_of_32", config, [4])
        return await client.infer("encoder_of_32", 4, inputs)

    expected = asyncio.run(OnnxInference(bundle).infer("query_encoder", 4, inputs))
    np.testing.assert_allclose(ask(work)["query"], expected["query"], atol=1e-5)


def test_two_versions_answer_side_by_side_and_the_first_never_stops(ask: Any, repository: Path) -> None:
    features = {"features": np.random.default_rng(1).standard_normal((5, 17)).astype(np.float32)}
    config = repository / "ranker" / "config.pbtxt"

    async def work(client: TritonClient) -> None:
        await client.load("ranker", config, [1])
        before = (await client.infer("ranker", 1, features))["score"]
        loading = asyncio.create_task(client.load("ranker", config, [1, 2]))
        answers = 0
        while not loading.done():
            np.testing.assert_array_equal((await client.infer("ranker", 1, features))["score"], before)
            answers += 1
        await loading
        assert answers > 10 and await client.loaded_versions("ranker") == [1, 2]
        assert not np.allclose((await client.infer("ranker", 2, features))["score"], before)
        assert await client.max_batch_size("ranker", 2) == 1024
        await client.load("ranker", config, [2])
        assert not await client.ready("ranker", 1) and await client.ready("ranker", 2)
        with pytest.raises(TritonError, match="version 1") as error:
            await client.infer("ranker", 1, features)
        assert error.value.code in ("NOT_FOUND", "UNAVAILABLE")
        await client.unload("ranker")

        async def unloaded() -> bool:
            return not await client.ready("ranker", 2)

        await eventually_async(unloaded)

    ask(work)


def test_inputs_that_do_not_fit(ask: Any, repository: Path) -> None:
    async def work(client: TritonClient) -> None:
        await client.load("ranker", repository / "ranker" / "config.pbtxt", [1])
        for inputs in (
            {"features": np.zeros((2, 3), np.float32)},
            {"features": np.zeros((2, 17))},
            {"feature": np.zeros((2, 17), np.float32)},
        ):
            with pytest.raises(TritonError) as error:
                await client.infer("ranker", 1, inputs)
            assert error.value.code == "INVALID_ARGUMENT"

    ask(work)


def test_a_model_that_cannot_be_loaded_says_why(ask: Any, repository: Path) -> None:
    reasons = {
        "broken": r"broken/1/model\.onnx: not a valid ONNX model",
        "missing": r"missing/1/model\.onnx: no such file",
        "narrow": r"narrow/1/model\.onnx: input features has dims \[-1, 17\], config\.pbtxt says \[-1, 16\]",
        "on_gpu": r"on_gpu.*(GPU|container)",
        "threads": r"parameters intra_op_thread_count: expected a number of threads, got 'two'",
        "unheard_of": r"config\.pbtxt: no such model configuration",
    }

    async def work(client: TritonClient) -> list[Any]:
        loads = (client.load(model, repository / model / "config.pbtxt", [1]) for model in reasons)
        return await asyncio.gather(*loads, return_exceptions=True)

    for reason, error in zip(reasons.values(), ask(work), strict=True):
        assert isinstance(error, TritonError | UserError) and re.search(reason, str(error)), error


def test_configuration_without_tensors_is_completed(ask: Any, repository: Path) -> None:
    """Inputs and outputs come from the file, with batches of up to four, as in NVIDIA's backend."""

    async def work(client: TritonClient) -> tuple[int, Any]:
        await client.load("silent", repository / "silent" / "config.pbtxt", [1])
        return await client.max_batch_size("silent", 1), await client.infer(
            "silent", 1, {"features": np.zeros((4, 17), np.float32)}
        )

    size, outputs = ask(work)
    assert size == 4 and outputs["score"].shape == (4, 1)


def test_missing_server_raises_unavailable() -> None:
    async def work() -> None:
        client = TritonClient("127.0.0.1:9")
        assert not await client.ready("ranker", 1)
        with pytest.raises(TritonError, match=r"ranker version 1 at 127\.0\.0\.1:9") as error:
            await client.infer("ranker", 1, {"features": np.zeros((1, 17), np.float32)})
        assert error.value.code == "UNAVAILABLE"
        await client.close()

    asyncio.run(work())


def test_error_of_an_ended_server_has_its_last_lines(server: TritonServer, repository: Path) -> None:
    """Two servers cannot share a port; the second one's log says so."""
    second = TritonServer(repository)
    second.http_address = server.http_address
    second.start()
    try:
        with pytest.raises(
            UserError, match=r"Triton ended with status 1: .*(Address already in use|failed to start)"
        ):
            wait_for_the_end(second)
    finally:
        second.stop()


def wait_for_the_end(server: TritonServer) -> None:
    """Waits until the server reports its end."""
    eventually(server.require_running)


def test_triton_does_not_outlive_a_parent_that_is_killed(repository: Path) -> None:
    code = f"""
import threading
from pathlib import Path
from serving.triton.server import TritonServer
with TritonServer(Path({str(repository)!r})) as server:
    print(server.http_address, flush=True)
    threading.Event().wait(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    port = int(parent.stdout.readline().rpartition(":")[2])
    triton = [child for child in psutil.Process(parent.pid).children() if child.name() == "tritonserver"]
    assert len(triton) == 1 and holder_of(port) == f"tritonserver (pid {triton[0].pid})"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert not psutil.wait_procs(triton, timeout=60)[1]
