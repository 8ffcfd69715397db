"""What the verbs share: options, tables, progress bars.

People read stderr and tables, machines read stdout.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import rich.box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from passerelle.progress import Progress

DEFAULT_REPOSITORY = Path("model_repository")

F = TypeVar("F", bound=Callable[..., Any])

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


class NamingCommand(click.Command):
    """A command with `{names}` in its help, which is replaced when the help is printed.

    Args:
        names: returns the names, such as those of the files of a folder.
    """

    def __init__(self, *args: Any, names: Callable[[], Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = names

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.help = (self.help or "").replace("{names}", ", ".join(self._names()))
        super().format_help_text(ctx, formatter)


def json_option(function: F) -> F:
    """Add `--json`, passed to the verb as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(
        function
    )


def k_option(text: str) -> Callable[[F], F]:
    """Returns what adds `-k`, with a help text that says how many items there are without it."""
    return click.option("-k", "k", type=click.IntRange(min=1), default=None, help=text)


def set_option(function: F) -> F:
    """Add a repeatable `--set section.key=value`, passed to the verb as `overrides`."""
    text = "Override one configuration value; repeatable."
    return click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=text)(function)


def repository_option(function: F) -> F:
    """Add `--repository DIR`, passed to the verb as `repository`."""
    kind, text = click.Path(path_type=Path), "Model repository of Triton."
    return click.option(
        "--repository", type=kind, default=DEFAULT_REPOSITORY, show_default=True, metavar="DIR", help=text
    )(function)


def print_json(values: Any) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(values, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table for people: first column to the left, the others to the right."""
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for position, name in enumerate(columns):
        table.add_column(name, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    stdout.print(table)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield a `Progress` that draws one bar for each stage on stderr, and nothing
    when stderr is not a terminal.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=stderr, disable=not stderr.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
