"""How the command line ends: what it prints and which status it leaves, for each kind of mistake."""

import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, cast

import click
import pytest

from passerelle import __version__
from passerelle.errors import UserError
from passerelle.ragged import gather_ragged
from ray_cluster.cli.main import VERBS
from tests.ray_cluster.conftest import Cli


@pytest.fixture
def run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli`; a verb `stumble` that does what `body` says stands beside the real ones."""

    def call(*arguments: str, body: Callable[[], None] | None = None) -> tuple[int, str, str]:
        module = types.ModuleType("ray_cluster.cli.stumble")
        module.command = click.Command(
            "stumble", callback=body, params=[click.Option(["-k"], type=int, expose_value=False)]
        )  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(VERBS, "stumble", "stumble")
        return cli(*arguments)

    return call


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_success_is_status_0(run: Cli) -> None:
    assert run("stumble", body=lambda: click.echo("done")) == (0, "done\n", "")


def test_a_verb_may_set_the_status(run: Cli) -> None:
    assert run("stumble", body=lambda: click.get_current_context().exit(3)) == (3, "", "")


def test_users_mistake_is_one_line_and_1(run: Cli) -> None:
    error = UserError("ratings.dat: 3 columns,\n  expected 4: see the README")
    assert run("stumble", body=raising(error)) == (
        1,
        "",
        "passerelle: ratings.dat: 3 columns, expected 4: see the README\n",
    )


def test_system_error_is_one_line_and_1(run: Cli) -> None:
    error = PermissionError(13, "Permission denied", "/root/x")
    assert run("stumble", body=raising(error)) == (
        1,
        "",
        "passerelle: [Errno 13] Permission denied: '/root/x'\n",
    )


def test_traceback_on_demand(run: Cli) -> None:
    status, _, err = run("--traceback", "stumble", body=raising(UserError("no such item")))
    assert status == 1
    assert err.startswith("Traceback")
    assert err.endswith("passerelle: no such item\n")


class LibraryError(Exception):
    """An error that no code of ours expects."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (LibraryError("schema:\n  a is\tno number"), "unexpected LibraryError: schema: a is no number"),
        (AssertionError("ours"), "unexpected AssertionError: ours"),
        (MemoryError(), "unexpected MemoryError"),
        (LibraryError("x" * 5000), f"unexpected LibraryError: {'x' * 500} ..."),
    ],
)
def test_an_unexpected_error_is_one_line_and_1(run: Cli, error: Exception, line: str) -> None:
    status, out, err = run("stumble", body=raising(error))
    assert (status, out) == (1, "")
    assert err == f"passerelle: {line}; `passerelle --traceback VERB ...` shows the code\n"
    status, _, err = run("--traceback", "stumble", body=raising(error))
    assert status == 1 and err.startswith("Traceback") and type(error).__name__ in err.splitlines()[-1]


def test_an_unexpected_error_names_where_in_our_code_it_arose(run: Cli) -> None:
    wrong = cast(Any, None)

    def body() -> None:
        gather_ragged(wrong, wrong)

    _, _, err = run("stumble", body=body)
    assert re.match(r"passerelle: unexpected TypeError at passerelle/ragged\.py:\d+: unsupported", err), err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stumble", "-k", "ten"], "'ten' is not a valid integer"),
        (["stumble", "--nonsense"], "--nonsense"),
        (["--nonsense", "doctor"], "--nonsense"),
        (["trian"], "trian"),
    ],
)
def test_wrong_usage_is_2(run: Cli, arguments: list[str], said: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted_is_130(run: Cli, error: BaseException) -> None:
    status, out, err = run("stumble", body=raising(error))
    assert (status, out) == (130, "")
    assert err.strip() == "passerelle: interrupted"


def test_ctrl_c_in_a_real_process() -> None:
    code = """if True:
        import sys, threading, types, click
        from ray_cluster.cli.main import VERBS, main
        def body():
            print("ready", flush=True)
            threading.Event().wait(60)
        command = click.Command("stumble", callback=body)
        sys.modules["ray_cluster.cli.stumble"] = types.SimpleNamespace(command=command)
        VERBS["stumble"] = "stumble"
        sys.argv = ["passerelle", "stumble"]
        main()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "passerelle: interrupted")


def test_version_and_help(run: Cli) -> None:
    assert run("--version") == (0, f"passerelle, version {__version__}\n", "")
    status, out, err = run("-h")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.split("Commands:\n")[1].splitlines()] == [*VERBS]
