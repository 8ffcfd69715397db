"""How the command line ends: what it prints and which status it leaves, for each kind of mistake."""

import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable

import click
import pytest

from passerelle import __version__
from passerelle.errors import UserError
from ray_cluster.cli.main import VERBS, main

Stumble = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stumble:
    """Call `main` with arguments; a verb `stumble` that does what `body` says stands beside the real ones."""

    def call(*arguments: str, body: Callable[[], None] | None = None) -> tuple[int, str, str]:
        module = types.ModuleType("ray_cluster.cli.stumble")
        module.command = click.Command("stumble", callback=body, params=[click.Option(["-k"], type=int, expose_value=False)])  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(VERBS, "stumble", "stumble")
        monkeypatch.setattr(sys, "argv", ["passerelle", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return call


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_a_good_verb_leaves_0(run: Stumble) -> None:
    assert run("stumble", body=lambda: click.echo("done")) == (0, "done\n", "")


def test_a_verb_may_choose_its_status(run: Stumble) -> None:
    assert run("stumble", body=lambda: click.get_current_context().exit(3)) == (3, "", "")


def test_users_mistake_is_one_line_and_1(run: Stumble) -> None:
    error = UserError("ratings.dat: 3 columns,\n  expected 4: see the README")
    assert run("stumble", body=raising(error)) == (1, "", "passerelle: ratings.dat: 3 columns, expected 4: see the README\n")


def test_system_error_is_one_line_and_1(run: Stumble) -> None:
    error = PermissionError(13, "Permission denied", "/root/x")
    assert run("stumble", body=raising(error)) == (1, "", "passerelle: [Errno 13] Permission denied: '/root/x'\n")


def test_traceback_on_demand(run: Stumble) -> None:
    status, _, err = run("--traceback", "stumble", body=raising(UserError("no such item")))
    assert status == 1
    assert err.startswith("Traceback")
    assert err.endswith("passerelle: no such item\n")


def test_our_own_bug_keeps_its_traceback(run: Stumble) -> None:
    with pytest.raises(AssertionError, match="ours"):
        run("stumble", body=raising(AssertionError("ours")))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stumble", "-k", "ten"], "'ten' is not a valid integer"),
        (["stumble", "--nonsense"], "--nonsense"),
        (["--nonsense", "doctor"], "--nonsense"),
        (["trian"], "trian"),
    ],
)
def test_wrong_usage_is_2(run: Stumble, arguments: list[str], said: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted_is_130(run: Stumble, error: BaseException) -> None:
    status, out, err = run("stumble", body=raising(error))
    assert (status, out) == (130, "")
    assert err.strip() == "passerelle: interrupted"


def test_ctrl_c_in_a_real_process() -> None:
    code = """if True:
        import sys, time, types, click
        from ray_cluster.cli.main import VERBS, main
        def body():
            print("ready", flush=True)
            time.sleep(60)
        sys.modules["ray_cluster.cli.stumble"] = types.SimpleNamespace(command=click.Command("stumble", callback=body))
        VERBS["stumble"] = "stumble"
        sys.argv = ["passerelle", "stumble"]
        main()
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.strip()) == (130, "", "passerelle: interrupted")


def test_version_and_help(run: Stumble) -> None:
    assert run("--version") == (0, f"passerelle, version {__version__}\n", "")
    status, out, err = run("-h")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.split("Commands:\n")[1].splitlines()] == [*VERBS]
