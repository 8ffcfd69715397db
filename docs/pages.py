"""What the generators of documents share: writing or checking a page, and one sentence a line."""

import re
import sys
import textwrap
from pathlib import Path

from passerelle.files import write_text

WIDTH = 120
"""Columns of a line of Markdown."""
_SENTENCE_END = re.compile(r"(?<=[.?!])(?<!e\.g\.)(?<!i\.e\.) +(?=[A-Z`])")


def sentence_lines(text: str, indent: str = "") -> list[str]:
    """Each sentence of a text on a line of its own, wrapped where it is longer than `WIDTH`."""
    sentences = _SENTENCE_END.split(" ".join(text.split()))
    wrapped = (
        textwrap.wrap(
            sentence,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for sentence in sentences
    )
    return [line for lines in wrapped for line in lines]


def write_or_check(path: Path, text: str) -> None:
    """Write a generated document, or compare it where the command line says `--check`.

    Raises:
        SystemExit: with `--check`, the document would change.
    """
    if sys.argv[1:] != ["--check"]:
        write_text(path, text)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path.name} is not current: run make docs")
