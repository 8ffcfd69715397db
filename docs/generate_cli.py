"""Write docs/cli.md, the reference of the command line, from the help of every verb.

python docs/generate_cli.py          # or: make docs
python docs/generate_cli.py --check  # exit status 1 when the file is not what would be written
"""

from collections.abc import Iterator
from pathlib import Path

import click
from pages import write_or_check

from ray_cluster.cli.main import VERBS, passerelle

TARGET = Path(__file__).parent / "cli.md"
WIDTH = 110
INTRODUCTION = """\
# The command line

Written by `make docs` from the help of each verb: edit the verb, not this file.
`passerelle VERB --help` prints the same text.

A mistake in what you give a verb is one line on stderr and exit status 1.
A mistake in the command line itself is exit status 2, and Ctrl-C is 130.
"""


def sections() -> Iterator[tuple[str, str]]:
    """Title and help text of the command itself, then of every verb in the order a user meets them."""
    root = click.Context(
        passerelle, info_name="passerelle", terminal_width=WIDTH, **passerelle.context_settings
    )
    yield "passerelle", passerelle.get_help(root)
    for verb in VERBS:
        command = passerelle.get_command(root, verb)
        assert command is not None
        yield (
            f"passerelle {verb}",
            command.get_help(click.Context(command, info_name=verb, parent=root, terminal_width=WIDTH)),
        )


def reference() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(
        f"\n## {title}\n```text\n{text.rstrip()}\n```\n" for title, text in sections()
    )


if __name__ == "__main__":
    write_or_check(TARGET, reference())
