"""Spoiling files."""

from pathlib import Path


def flip_byte(path: Path, position: int = -1) -> None:
    """Alter one byte; the size stays."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
