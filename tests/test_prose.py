"""Prose: one sentence a line, lines that fit a screen, and the vocabulary of the field."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MARKDOWN_COLUMNS = 120
PYTHON_COLUMNS = 110
PROSE_LINES = 120
LONG_PAGES = {
    "CHANGELOG.md": "it grows",
    "README.md": "the first page holds the way from logs to answers in one piece",
    "docs/cli.md": "generated",
    "docs/configuration.md": "generated",
    "docs/design.md": "a line per file of the packages",
    "docs/results.md": "generated",
}
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|etc|no|fig)\.$", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<![.])[.?!][)\"*_]?(?= +[A-Z`\[])")

OLD_WORDS = (
    r"\bhard rules?\b",
    r"\bstrangers?\b",
    r"\bcircumstances?\b",
    r"\bkinds? of events?\b",
    r"\bBeside it\b",
    r"\bhidden items?\b",
    r"\bNOBODY\b",
    r"\bEVERY_S\b",
    r"\b(?:look_further|is_there|of_step|answers_UD|workers_here|bare_model|learn_encoding)\b",
    r"\b(?:_in_turns|_within|_filled|_apart)\(",
    r"\bquery\.clock\b",
    r"\b(?:Crowd|Incoming|Tally)\b",
    r"\bclass (?:Gate|Guard|Rates|Parts|Turns|Question|Entries|Facts|Content|Preferences|Attend|Measures)\b",
)
"""Names and words that the field's terms have replaced."""


def tracked(*patterns: str) -> list[str]:
    """Names of tracked files that match one of the patterns of `git ls-files`, and that exist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and lines of a Markdown file outside code blocks, tables, headings and comments."""
    in_code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith(("|", "#", "<!--")):
            yield number, line


def sentences_that_go_on(line: str) -> list[int]:
    """Positions at which a sentence ends within a line and another one starts."""
    plain = re.sub(r"`[^`]*`", lambda code: "`" + "x" * (len(code[0]) - 2) + "`", line)
    ends = (match.end() for match in SENTENCE_END.finditer(plain))
    return [end for end in ends if not ABBREVIATION.search(plain[:end].rstrip(')"*_'))]


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and lines of the comments and docstrings of a Python file, without examples."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"# *(type:|noqa|fmt:|pragma|!)", token.string):
            yield token.start[0], token.line.rstrip() if token.line.lstrip().startswith("#") else token.string
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else []:
            literal = child.value if isinstance(child, ast.Expr) else None
            if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                for offset, line in enumerate(literal.value.splitlines()):
                    if not line.lstrip().startswith((">>>", "...", "|")):
                        yield literal.lineno + offset, line


def python_offenders() -> list[str]:
    """Lines of comments and docstrings that are too long, or in which a second sentence starts."""
    found = []
    for name in tracked("*.py"):
        for number, line in python_prose((ROOT / name).read_text(encoding="utf-8")):
            if len(line) > PYTHON_COLUMNS or sentences_that_go_on(line):
                found.append(f"{name}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("name", tracked("*.md"))
def test_markdown_has_short_lines(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, start=1) if len(line) > MARKDOWN_COLUMNS] == [], (
        f"lines over {MARKDOWN_COLUMNS} columns"
    )


@pytest.mark.parametrize("name", tracked("*.md"))
def test_markdown_has_one_sentence_a_line(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [f"{number}: {line}" for number, line in markdown_prose(text) if sentences_that_go_on(line)] == []


@pytest.mark.parametrize("name", sorted(set(tracked("*.md")) - set(LONG_PAGES)))
def test_pages_are_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= PROSE_LINES


def test_comments_and_docstrings_have_one_sentence_a_line() -> None:
    assert python_offenders() == []


def test_old_words_are_gone() -> None:
    """Names that were replaced by the field's terms; the changelog may name an old key."""
    old = re.compile("|".join(OLD_WORDS))
    exempt = {"CHANGELOG.md", "tests/test_prose.py"}
    found = []
    for name in tracked():
        if name in exempt or name.startswith("benchmarks/results/"):
            continue
        text = (ROOT / name).read_bytes().decode("utf-8", errors="ignore")
        found += [
            f"{name}:{number}: {word[0]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if (word := old.search(line))
        ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "goes_on"),
    [
        ("One sentence. Another.", True),
        ("One sentence. `code` begins another.", True),
        ("Short words, e.g. Redis, stay.", False),
        ("Set `a. B` to 0.5 and NDCG@10 is .18.", False),
        ("See (this). That follows.", True),
    ],
)
def test_the_heuristic_finds_second_sentences(line: str, goes_on: bool) -> None:
    assert bool(sentences_that_go_on(line)) == goes_on
