"""Files as streams of bytes: what compresses them is told by their first bytes, not by their names."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from passerelle.errors import UserError
from passerelle.prepare.config import TableConfig

BLOCK_BYTES = 16 << 20

OnBadLine = Callable[[str, str], None]
"""Called with what is wrong with a line, in a few words, and with the line."""
OnBytes = Callable[[int], None]

COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
_FOREIGN = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"\xff\xfe": 'UTF-16 text: set encoding = "utf-16"',
    b"\xfe\xff": 'UTF-16 text: set encoding = "utf-16"',
}


def unpacked(path: Path, raw: io.BufferedReader, config: TableConfig) -> io.BufferedReader:
    """Returns the content of an open file.

    Raises:
        UserError: the file is of another format, which its first bytes tell.
    """
    stream = _decompressed(raw)
    start = stream.peek(8)[:8]
    if stream is raw and path.suffix in COMPRESSED_SUFFIXES and start:
        raise UserError(f"{path}: truncated or damaged compressed file (its first bytes): fetch it again")
    if start.startswith(b"PAR1") and config.format != "parquet":
        raise UserError(f'{path}: a Parquet file: set format = "parquet"')
    for magic, what in _FOREIGN.items():
        if start.startswith(magic) and config.encoding == "utf-8":
            raise UserError(f"{path}: {what}")
    return stream


def _decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    start = raw.peek(8)
    opened: Any = raw
    if start.startswith(b"\x1f\x8b"):
        opened = gzip.GzipFile(fileobj=raw, mode="rb")
    elif start.startswith(b"BZh"):
        opened = bz2.BZ2File(raw)
    elif start.startswith(b"\xfd7zXZ\x00"):
        opened = lzma.LZMAFile(raw)  # noqa: SIM115
    elif start.startswith(b"\x28\xb5\x2f\xfd"):
        opened = pa.CompressedInputStream(raw, "zstd")
    return opened if opened is raw else io.BufferedReader(opened, BLOCK_BYTES)


class Pieces(io.RawIOBase):
    """An iterator of byte strings as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def whole_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield a stream in blocks that end where a line does, the last one perhaps without a line end."""
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        text = rest + block
        end = text.rfind(b"\n") + 1 or text.rfind(b"\r", 0, len(text) - 1) + 1
        rest = text[end:]
        if end:
            yield text[:end]
    if rest:
        yield rest


def check_columns(path: Path, there: Sequence[str], required: Sequence[str]) -> None:
    """Check that a file has each required column once.

    Raises:
        UserError: it has not; says which columns there are.
    """
    missing = [name for name in required if name not in there]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))}; there are: {', '.join(there) or 'none'}"
        )
    twice = [name for name in required if list(there).count(name) > 1]
    if twice:
        raise UserError(
            f"{path}: more than one column {', '.join(map(repr, twice))}; name the columns in `columns`"
        )
