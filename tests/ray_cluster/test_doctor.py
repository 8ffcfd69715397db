"""The doctor's findings: from hand-made data for every branch, and from the real
environment for what gathers the data.
"""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_cluster import doctor, findings
from ray_cluster.cli.doctor import as_text
from ray_cluster.cli.doctor import command as doctor_command
from ray_cluster.findings import GIB, Finding

PAIR = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu": None, "fbgemm-gpu-cpu": "1.8.0"}
GPU = {"cuda_build": "12.8", "devices": [["H200", 140 * GIB]]}
NO_GPU = {"cuda_build": "12.8", "devices": []}
CPU_BUILD = {"cuda_build": None, "devices": []}


@pytest.mark.parametrize(
    ("torch", "torchrec", "fbgemm", "fits"),
    [
        ("2.13.0", "1.8.0", "1.8.0", True),
        ("2.13.1+cu128", "1.8.2", "1.8.0+cu128", True),
        ("2.12.0", "1.7.0", "1.7.0", True),
        ("2.13.0", "1.7.0", "1.7.0", False),  # fails at import: "Could not load this library"
        ("2.13.0", "1.8.0", "1.6.0", False),
        ("2.13.0", "1.7.0", "1.8.0", False),
        ("2.1.0", "1.8.0", "1.8.0", False),  # 2.1 is not 2.13
        ("2.13.0", "1.80.0", "1.8.0", False),
        ("2.13.0", "2.8.0", "1.8.0", False),
        ("3.13.0", "1.8.0", "1.8.0", False),
        (None, "1.8.0", "1.8.0", False),
        ("2.13.0", None, "1.8.0", False),
        ("2.13.0", "1.8.0", None, False),
    ],
)
@pytest.mark.parametrize("build", ["fbgemm-gpu", "fbgemm-gpu-cpu"])
def test_pairs(torch: str | None, torchrec: str | None, fbgemm: str | None, fits: bool, build: str) -> None:
    finding = findings.check_pairs({"torch": torch, "torchrec": torchrec, build: fbgemm})
    assert finding.level == ("ok" if fits else "error")
    assert bool(finding.remedy) is not fits


def test_pairs_name_the_versions_that_would_fit() -> None:
    finding = findings.check_pairs({**PAIR, "torch": "2.14.0"})
    assert "torch 2.14 goes with torchrec and fbgemm 1.9" in finding.remedy
    assert "fbgemm-gpu-cpu 1.8.0" in finding.message


def test_both_builds_of_fbgemm_are_an_error() -> None:
    assert findings.check_pairs({**PAIR, "fbgemm-gpu": "1.8.0"}).level == "error"


def test_pins_follow_the_pair_rule() -> None:
    for flavour, build in (("cpu", "fbgemm-gpu-cpu"), ("cuda", "fbgemm-gpu")):
        pins = doctor.read_pins(doctor.REQUIREMENTS, ["torch.txt", f"torchrec-{flavour}.txt"])
        assert findings.check_pairs(pins).level == "ok"
        assert build in pins


def test_read_pins(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("# torch==1.0\ntorch==2.13.0\nray[train,serve]==2.60.0  # why\n\n")
    assert doctor.read_pins(tmp_path, ["base.txt", "absent.txt"]) == {"torch": "2.13.0", "ray": "2.60.0"}


def test_packages() -> None:
    pins = {"numpy": "2.4.6", "torch": "2.13.0", "ray": "2.60.0", "click": "8.5.1"}
    installed = {"numpy": "2.4.6", "torch": "2.13.0+cpu", "ray": "2.59.0", "click": None}
    assert [(finding.subject, finding.level) for finding in findings.check_packages(pins, installed)] == [
        ("packages", "ok"),
        ("ray", "warning"),
        ("click", "error"),
    ]
    assert findings.check_packages(pins, installed)[0].message == "numpy 2.4.6, torch 2.13.0+cpu"
    assert findings.check_packages({}, {})[0].level == "warning"


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        (findings.check_python((3, 11), ["3.10", "3.11"]), "ok", "3.11"),
        (findings.check_python((3, 10), []), "error", "too old"),
        (findings.check_python((3, 14), ["3.11", "3.13"]), "error", "no stub"),
        (findings.check_python((3, 14), []), "ok", "3.14"),
        (findings.check_gpu(None, None, PAIR), "warning", "unknown"),
        (findings.check_gpu(CPU_BUILD, None, PAIR), "ok", "none: CPU"),
        (findings.check_gpu(NO_GPU, None, PAIR), "ok", "none: CPU"),
        (findings.check_gpu(CPU_BUILD, "570.1", PAIR), "warning", "torch is a CPU build"),
        (findings.check_gpu(NO_GPU, "470.1", PAIR), "warning", "sees no device"),
        (findings.check_gpu(GPU, "570.1", PAIR), "warning", "fbgemm is the CPU build"),
        (
            findings.check_gpu(GPU, "570.1", {"fbgemm-gpu": "1.8.0"}),
            "ok",
            "H200 140 GiB; driver 570.1, CUDA 12.8",
        ),
        (findings.check_triton(None, None), "error", "no embedded server"),
        (findings.check_triton(Path("server"), None), "error", "does not start"),
        (findings.check_triton(Path("server"), "2.51.0"), "ok", "2.51.0"),
        (findings.check_port(8000, None), "ok", "free"),
        (findings.check_port(8000, "python (pid 7)"), "warning", "held by python (pid 7)"),
        (findings.check_disk(Path("/data"), 5 * GIB), "ok", "5.0 GiB free in /data"),
        (findings.check_disk(Path("/data"), 5 * GIB - 1), "warning", "GiB"),
        (findings.check_disk(Path("/data"), GIB - 1), "error", "1.0 GiB"),
        (findings.check_memory(4 * GIB, 8 * GIB, 2), "ok", "4.0 of 8.0 GiB available, 2 cores"),
        (findings.check_memory(4 * GIB - 1, 8 * GIB, 2), "warning", "cores"),
        (findings.check_shared_memory(None), "ok", "no /dev/shm"),
        (findings.check_shared_memory(64 << 20), "warning", "0.1 GiB"),
        (findings.check_shared_memory(2 * GIB), "ok", "2.0 GiB"),
        (
            findings.check_data({"movielens-1m": None, "online-retail": None}),
            "warning",
            "none of movielens-1m, online-retail",
        ),
        (
            findings.check_data({"movielens-1m": "/data/ml-1m", "online-retail": None}),
            "ok",
            "movielens-1m in /data/ml-1m",
        ),
    ],
)
def test_findings(finding: Finding, level: str, said: str) -> None:
    assert finding.level == level
    assert said in finding.message
    assert "\n" not in finding.message + finding.remedy
    assert bool(finding.remedy) is (level != "ok")


def test_imports() -> None:
    found = findings.check_imports({"torch": None, "faiss": "ImportError: libgomp.so.1", "ray": None})
    assert [(finding.subject, finding.level, finding.message) for finding in found] == [
        ("imports", "ok", "torch, ray"),
        ("import faiss", "error", "ImportError: libgomp.so.1"),
    ]


def test_probe_survives_errors_crashes_and_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_here.py").write_text("raise OSError('Could not load\\nthis library')\n")
    (tmp_path / "prints_here.py").write_text("print('hello')\n")
    (tmp_path / "crashes_here.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (tmp_path / "hangs_here.py").write_text("import threading\nthreading.Event().wait(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.run_probe(["prints_here", "raises_here", "crashes_here", "json"]) == (
        {
            "prints_here": None,
            "raises_here": "OSError: Could not load this library",
            "crashes_here": "the process was killed by SIGSEGV",
            "json": "not tried after the one before it",
        },
        None,
    )
    errors, _ = doctor.run_probe(["json", "hangs_here"], timeout_s=5)
    assert errors == {"json": None, "hangs_here": "no answer within 5 s"}


def test_port_holder_names_the_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert re.fullmatch(rf"\S+ \(pid {os.getpid()}\)", doctor.port_holder(port) or "")
    assert doctor.port_holder(port) is None


def test_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "ml-1m").mkdir(parents=True)
    for name in ("ratings.dat", "movies.dat", "users.dat"):
        (tmp_path / "mine" / "ml-1m" / name).touch()
    (tmp_path / "house").mkdir()
    monkeypatch.chdir(tmp_path / "house")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PASSERELLE_DATA", raising=False)
    assert set(doctor.data_sets().values()) == {None}
    monkeypatch.setenv("PASSERELLE_DATA", str(tmp_path / "mine"))
    assert doctor.data_sets() == {
        "globo-news": None,
        "movielens-100k": None,
        "movielens-1m": str(tmp_path / "mine" / "ml-1m"),
        "movielens-latest-small": None,
        "online-retail": None,
    }


def test_remedy_is_under_the_message() -> None:
    text = as_text(
        Finding("port 8000", "warning", "held by python (pid 7), which somebody left running", "stop it"),
        columns=60,
    )
    assert text.splitlines() == [
        "\x1b[33mwarning  \x1b[0mport 8000        held by python (pid 7), which",
        " " * 26 + "somebody left running",
        " " * 26 + "-> stop it",
    ]


def test_this_environment_is_sound() -> None:
    """The verb as a user runs it: everything as pinned, the pairs import, the
    embedded Triton reports its version.
    """
    result = CliRunner().invoke(doctor_command, ["--json"])
    report = json.loads(result.stdout)
    errors = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert not errors
    assert report["ok"] is True
    assert result.exit_code == 0
    messages = {finding["subject"]: finding["message"] for finding in report["findings"]}
    assert "ray 2." in messages["packages"]
    assert "fit together" in messages["torch pairs"]
    assert "fbgemm_gpu" in messages["imports"]
    assert re.fullmatch(r"embedded server \d+\.\d+\.\d+", messages["triton"])


def test_an_error_makes_the_status_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    (requirements / "base.txt").write_text("no-such-package==1.0\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", requirements)
    monkeypatch.setattr(doctor, "PROBES", (("json",),))
    result = CliRunner().invoke(doctor_command, [])
    assert result.exit_code == 1
    assert re.search(
        r"error +no-such-package +not installed; 1.0 is pinned\n +-> make setup\n", result.stdout
    )
