"""A quote that is never closed loses no line but its own."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passerelle.prepare.readers import quotes, streams
from passerelle.prepare.readers.quotes import SWALLOWED, TEXT_BEHIND, UNCLOSED, checked_quotes


def checked(text: bytes, num_values: int = 2, separator: bytes = b",") -> tuple[bytes, list[tuple[str, str]]]:
    """The sound rows, and what was reported."""
    bad: list[tuple[str, str]] = []
    stream = io.BufferedReader(io.BytesIO(text))  # type: ignore[arg-type]
    kept = b"".join(
        checked_quotes(stream, separator, num_values, lambda what, line: bad.append((what, line)))
    )
    return kept, bad


@pytest.mark.parametrize(
    "text",
    [
        b"a,b\nc,d\n",
        b"a,b\nc,d",
        b'a,"b"\n"c","d"\n',
        b'a,""\nb,""""\nc,"a ""quoted"" word"\nd,"""first"\n',
        b'a,"two\nlines"\nb,c\n',
        b'a,"with, separator"\n',
        b'a,"with, separator\nand lines"\nb,c\n',
        b'a,5" disk\nb,7" x 9"\nc,"d"\n',
        b'a,"b"\r\nc,"d\r\ne"\r\n',
        b'a,"b"\rc,"d"\r',
        b'\n\na,"b"\n\n',
    ],
)
def test_sound_text_stays_as_it_is(text: bytes) -> None:
    assert checked(text, 3 if b", sep" in text else 2) == (text, [])


@pytest.mark.parametrize(
    ("text", "num_values", "kept", "what"),
    [
        # The quote ends at the next one, in mid-value.
        (b'1,a,"Untitled\n2,b "plain",\n', 3, b'2,b "plain",\n', TEXT_BEHIND),
        (b'a,"Untitled\nb,Plain\nc,The "best"\n', 2, b'b,Plain\nc,The "best"\n', SWALLOWED),
        # It ends at the end of a row, so that all looks well.
        (b'a,"Untitled\nb,Plain\nc,Other"\nd,e\n', 2, b'b,Plain\nc,Other"\nd,e\n', SWALLOWED),
        (b'a,"Untitled\nb,Plain\n', 2, b"b,Plain\n", UNCLOSED),
        (b'a,"b"c\nd,e\n', 2, b"d,e\n", TEXT_BEHIND),
        (b'"a,b\nc,d\n', 2, b"c,d\n", UNCLOSED),
        (b'1,2,"15 inch\n3,4,tv\n5,6,"15 inch\n', 3, b"3,4,tv\n", SWALLOWED),
    ],
)
def test_the_line_of_a_stray_quote_is_left_out(text: bytes, num_values: int, kept: bytes, what: str) -> None:
    found, bad = checked(text, num_values)
    assert found == kept
    assert bad[0] == (what, repr(text.splitlines()[0].decode()))


def test_lines_of_two_stray_quotes() -> None:
    found, bad = checked(b'u1,a,1,"15 inch\nu1,b,2,tv\nu2,a,3,lamp\nu2,b,4,"15 inch\nu3,a,5,sofa\n', 4)
    assert found == b"u1,b,2,tv\nu2,a,3,lamp\nu3,a,5,sofa\n"
    assert [line for _, line in bad] == ["'u1,a,1,\"15 inch'", "'u2,b,4,\"15 inch'"]


def test_tabs_and_other_separators() -> None:
    assert checked(b'a\t"Untitled\nb\tPlain\nc\tOther"\n', 2, b"\t") == (
        b'b\tPlain\nc\tOther"\n',
        [(SWALLOWED, "'a\\t\"Untitled'")],
    )


@settings(max_examples=300)
@given(st.text('"",a\n', max_size=40), st.integers(2, 9))
def test_blocks_change_nothing(text: str, block_bytes: int) -> None:
    whole = checked(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK_BYTES", block_bytes)
        patch.setattr(quotes, "BLOCK_BYTES", 10**6)
        assert checked(text.encode()) == whole


@settings(max_examples=500)
@given(st.lists(st.text('"",ab\n', max_size=12)))
def test_no_line_vanishes(lines: list[str]) -> None:
    """Each line is in what is kept, or reported."""
    text = "".join(line.replace("\n", "") + "\n" for line in lines).encode()
    kept, bad = checked(text)
    assert len(kept.splitlines()) + len(bad) == len(text.splitlines())


@settings(max_examples=300)
@given(st.lists(st.tuples(st.text("ab\"' \n", max_size=8), st.text('ab";x', max_size=8)), max_size=8))
def test_what_a_csv_writer_writes_is_sound(rows: list[tuple[str, str]]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    text = written.getvalue().encode()
    assert checked(text) == (text, [])
