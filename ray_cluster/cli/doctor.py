"""`passerelle doctor`: what is installed, what fits, what is free."""

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ray_cluster.cli.console import json_option, print_json, stderr

if TYPE_CHECKING:
    from ray_cluster.findings import Finding

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
INDENT = 26
"""Column where messages start."""


def as_text(finding: "Finding", columns: int) -> str:
    """Returns a finding for people: level, subject, message, and the remedy under the message."""
    text = f"{finding.message}\n\n-> {finding.remedy}" if finding.remedy else finding.message
    wrapped = click.wrap_text(
        text,
        width=columns,
        initial_indent=" " * INDENT,
        subsequent_indent=" " * INDENT,
        preserve_paragraphs=True,
    )
    level = click.style(f"{finding.level:<9}", fg=COLOURS[finding.level])
    return f"{level}{finding.subject:<{INDENT - 10}} {wrapped[INDENT:]}".replace("\n\n", "\n")


@click.command()
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Look at this machine: packages, whether torch and torchrec match, GPU, Triton,
    port, disk, memory, data sets.

    Each finding is ok, a warning or an error, with its remedy; an error makes the exit status 1.

    \b
    passerelle doctor
    passerelle doctor --json
    """
    from ray_cluster.doctor import examine

    with stderr.status("importing the libraries ..."):
        findings = examine()
    sound = all(finding.level != "error" for finding in findings)
    if as_json:
        print_json({"ok": sound, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            click.echo(as_text(finding, shutil.get_terminal_size().columns))
    ctx.exit(0 if sound else 1)
