"""Quoted values of csv text: a quote that is never closed would swallow the lines after it.

Such a line is reported and left out, and reading goes on with the next one, so that no other line is lost.
A line is bad if text stands behind a closing quote, or if a quote stays open until the end of the file.
It is bad, too, if its value goes on over lines of which one has as many separators as a row.
A block without quotes, or with sound ones alone, is judged as a whole by numpy; other blocks line by line.
"""

import io
import re
from collections.abc import Iterator

import numpy as np

from passerelle.prepare.readers.streams import BLOCK_BYTES, OnBadLine, whole_lines

_REMEDY = "(set quoting = false if quotes are text)"
UNCLOSED = f"a quote that is never closed {_REMEDY}"
TEXT_BEHIND = f"text behind a closing quote {_REMEDY}"
SWALLOWED = f"a quoted value that goes on over lines that look like rows {_REMEDY}"
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')


def checked_quotes(
    stream: io.BufferedReader, separator: bytes, num_values: int, on_bad_line: OnBadLine
) -> Iterator[bytes]:
    """Yield the text without its bad lines, in pieces of whole rows.

    Args:
        separator: one byte.
        num_values: values of a row.
        on_bad_line: called for each line that is left out.
    """
    rows = _Rows(separator, num_values, on_bad_line)
    rest = b""
    for block in whole_lines(stream):
        text = rest + block
        kept, rest = rows.split(text, is_last=False)
        yield kept
    if rest:
        yield rows.split(rest, is_last=True)[0]


class _Rows:
    """Splits text into sound rows and bad lines."""

    def __init__(self, separator: bytes, num_values: int, on_bad_line: OnBadLine) -> None:
        self._separator = separator
        self._num_values = num_values
        self._on_bad_line = on_bad_line
        self._unquoted = re.compile(rb"[^%s\r\n]*+" % re.escape(separator))

    def split(self, text: bytes, *, is_last: bool) -> tuple[bytes, bytes]:
        """Returns the sound rows of a text, and what has to be read on with the next block."""
        if b'"' not in text or self._is_sound(text):
            return text, b""
        kept: list[bytes] = []
        begin = position = 0
        while (quote := text.find(b'"', position)) >= 0:
            before = (text.rfind(b"\n", position, quote), text.rfind(b"\r", position, quote))
            start = max(position, *(end + 1 for end in before))
            end, problem = self._row_end(text, start)
            if problem == UNCLOSED and not is_last and len(text) - start < BLOCK_BYTES:
                return b"".join([*kept, text[begin:start]]), text[start:]
            position = end
            if problem:
                position = _line_end(text, start)
                self._on_bad_line(problem, repr(text[start:position].decode(errors="replace").rstrip("\r\n")))
                kept.append(text[begin:start])
                begin = position
        return b"".join([*kept, text[begin:]]), b""

    def _row_end(self, text: bytes, start: int) -> tuple[int, str]:
        """Returns where the row ends, its line end included, and what is wrong with it."""
        position = start
        while True:
            if text[position : position + 1] == b'"':
                quoted = _QUOTED.match(text, position)
                if quoted is None:
                    return len(text), UNCLOSED
                if self._swallows(quoted[0]):
                    return quoted.end(), SWALLOWED
                position = quoted.end()
                if text[position : position + 1] not in (self._separator, b"\n", b"\r", b""):
                    return position, TEXT_BEHIND
            else:
                position = self._unquoted.match(text, position).end()  # type: ignore[union-attr]
            if text[position : position + 1] != self._separator:
                return _line_end(text, position), ""
            position += 1

    def _swallows(self, value: bytes) -> bool:
        if self._num_values < 2 or b"\n" not in value:
            return False
        _, *lines = value.split(b"\n")
        return any(line.count(self._separator) == self._num_values - 1 for line in lines)

    def _is_sound(self, text: bytes) -> bool:
        """Returns whether each quote of whole lines opens a value, closes one or is doubled within one."""
        data = np.frombuffer(text, dtype=np.uint8)
        quotes = np.flatnonzero(data == _QUOTE)
        is_first = np.append(True, np.diff(quotes) != 1)
        starts = quotes[is_first]
        ends = quotes[np.append(is_first[1:], True)] + 1
        is_edge = np.zeros(256, dtype=bool)
        is_edge[[_NEWLINE, _RETURN, self._separator[0]]] = True
        # The text begins and ends where a row does.
        begins_value = np.where(starts > 0, is_edge[data[starts - 1]], True)
        ends_value = np.where(ends < len(data), is_edge[data[np.minimum(ends, len(data) - 1)]], True)
        is_odd = (ends - starts) % 2 == 1
        is_inside = (np.cumsum(is_odd) - is_odd) % 2 == 1
        # Doubled quotes are text inside a value; outside, they are an empty value, or text in mid-value.
        doubled = is_inside | ~begins_value | ends_value
        if not np.where(is_odd, np.where(is_inside, ends_value, begins_value), doubled).all():
            return False
        opening, closing = starts[is_odd & ~is_inside], ends[is_odd & is_inside]
        if len(opening) != len(closing):
            return False
        newlines = np.flatnonzero(data == _NEWLINE)
        over_lines = np.searchsorted(newlines, opening) != np.searchsorted(newlines, closing)
        pairs = zip(opening[over_lines].tolist(), closing[over_lines].tolist(), strict=True)
        return not any(self._swallows(text[start:end]) for start, end in pairs)


def _line_end(text: bytes, position: int) -> int:
    """Returns the index after the next line end."""
    found = [end for end in (text.find(b"\n", position), text.find(b"\r", position)) if end >= 0]
    if not found:
        return len(text)
    end = min(found) + 1
    return end + 1 if text[end - 1 : end + 1] == b"\r\n" else end
