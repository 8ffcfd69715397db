"""The log of served answers: full disks, rotation, and warnings."""

import json
from pathlib import Path

import pytest

from passerelle.bundle import Bundle
from serving.api.app import build_app
from serving.observability.served_log import ServedLog
from tests.serving.conftest import recommender_of
from tests.support.asgi import recommend
from tests.support.inference import HangingInference, OnnxInference


def test_full_disk_does_not_fail_answers(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    log = ServedLog(Path("/dev/full"))
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, log=log))
    assert [recommend(app, {"user_id": 1003}).status_code for _ in range(3)] == [200] * 3
    assert caplog.text.count("No space left on device") == 1
    log.close()


def test_log_continues_in_a_new_file_after_rotation(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.observability.served_log.ROTATION_CHECK_INTERVAL_S", 0.0)
    log = ServedLog(tmp_path / "log.jsonl")
    app = build_app(recommender_of(bundle, OnnxInference(bundle), 7, log=log))
    recommend(app, {"user_id": 1003})
    (tmp_path / "log.jsonl").rename(tmp_path / "log.jsonl.1")
    recommend(app, {"user_id": 1003})
    recommend(app, {"user_id": 1003})
    log.close()
    lines = [
        len((tmp_path / name).read_text(encoding="utf-8").splitlines())
        for name in ("log.jsonl.1", "log.jsonl")
    ]
    assert lines == [1, 2]


def test_degraded_answers_are_logged(bundle: Bundle, tmp_path: Path) -> None:
    log = ServedLog(tmp_path / "log.jsonl")
    recommend(
        build_app(recommender_of(bundle, HangingInference(bundle), 7, log=log)),
        {"user_id": 1003, "deadline_ms": 300},
    )
    log.close()
    message, served = (
        json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert (
        message["kind"] == "message"
        and message["level"] == "warning"
        and "without the query encoder" in message["message"]
    )
    assert (
        served["kind"] == "served"
        and served["fallback"] == "similar"
        and served["degraded"] == ["query_encoder"]
    )
