"""What the generators of documents share."""

import sys
from pathlib import Path

from passerelle.files import write_text


def write_or_check(path: Path, text: str) -> None:
    """Write a generated document; with `--check` on the command line, write nothing and fail where that would change it."""
    if sys.argv[1:] != ["--check"]:
        write_text(path, text)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path.name} is not current: run make docs")
