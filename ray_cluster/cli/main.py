"""`passerelle VERB ...`: one verb a file, imported only when it is called.

passerelle --help
passerelle train --help
"""

import importlib
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click

from passerelle import __version__
from passerelle.errors import UserError
from ray_cluster.resources import PACKAGES

_HERE = Path(__file__).parents[2]
_MAX_MESSAGE = 500
VERBS = {
    "prepare": "prepare",
    "train": "train",
    "evaluate": "evaluate",
    "train-ranker": "train_ranker",
    "export": "export",
    "add-items": "add_items",
    "build-index": "build_index",
    "publish": "publish",
    "serve": "serve",
    "recommend": "recommend",
    "similar": "similar",
    "inspect": "inspect",
    "doctor": "doctor",
}
"""Verb -> module in this folder, whose `command` is the click command; in the order a user meets them."""


class Verbs(click.Group):
    """A group that lists its verbs in order and imports one only to run it or to print its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"ray_cluster.cli.{VERBS[cmd_name]}").command
        return command


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="passerelle")
@click.option(
    "--traceback", "show_traceback", is_flag=True, help="On an error, print where in the code it arose."
)
def passerelle(show_traceback: bool) -> None:
    """Train recommenders on a Ray cluster, export them to Triton, serve them through a Ray Serve graph.

    \b
    passerelle prepare movielens-1m --out artifacts/dataset
    passerelle train bert4rec --dataset artifacts/dataset --out artifacts/run
    passerelle train-ranker artifacts/run
    passerelle export artifacts/run --out artifacts/bundle
    passerelle publish artifacts/bundle
    passerelle serve artifacts/bundle
    """


def main() -> None:
    """Run the command line: a user's mistake is one line and status 1, Ctrl-C and SIGTERM are status 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = passerelle.main(prog_name="passerelle", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("passerelle: interrupted", err=True)
        sys.exit(130)
    except (UserError, OSError) as error:
        _end(str(error))
    # Of a library, or a fault of ours: a line tells the user more than a hundred of code.
    except Exception as error:
        _end(f"{unexpected(error)}; `passerelle --traceback VERB ...` shows the code")


def unexpected(error: Exception) -> str:
    """Returns the type and the message of an error that no code expected, and where in our code it arose.

    >>> unexpected(ZeroDivisionError("division by zero"))
    'unexpected ZeroDivisionError: division by zero'
    """
    frames = traceback.extract_tb(error.__traceback__)
    files = [(Path(frame.filename), frame.lineno) for frame in frames if frame.filename != __file__]
    ours = [
        f"{file.relative_to(_HERE)}:{line}"
        for file, line in files
        if file.is_relative_to(_HERE) and file.relative_to(_HERE).parts[0] in PACKAGES
    ]
    message = " ".join(str(error).split())
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]} ..."
    where = f" at {ours[-1]}" if ours else ""
    return f"unexpected {type(error).__name__}{where}: {message}".removesuffix(": ")


def _end(message: str) -> NoReturn:
    """Prints the line of an error, after the code that raised it where that was asked for, and ends."""
    if "--traceback" in sys.argv:
        traceback.print_exc()
    click.echo(f"passerelle: {' '.join(message.split())}", err=True)
    sys.exit(1)
