"""The command line's help: a sentence, examples, described options, and a current reference."""

import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from ray_cluster.cli.main import VERBS, passerelle
from tests.support.source_tree import ROOT


def help_of(verb: str) -> str:
    result = CliRunner().invoke(passerelle, [verb, "--help"], prog_name="passerelle", terminal_width=110)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_a_sentence_examples_and_described_options(verb: str) -> None:
    text = help_of(verb)
    usage, sentence = text.split("\n\n")[:2]
    assert usage.startswith(f"Usage: passerelle {verb} ")
    assert re.match(r"  [A-Z].*\.", sentence, re.DOTALL)
    assert re.search(rf"^ +passerelle {verb}\b", text, re.MULTILINE), "no example"
    command = passerelle.get_command(click.Context(passerelle), verb)
    assert command is not None
    assert [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ] == []


def test_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate_cli.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^## passerelle (\S+)$", page, re.MULTILINE) == list(VERBS)
