"""How long work tells a caller where it is, without knowing who shows it."""

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on: what is being done, how much of it is done, and how much there is."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """The default: nobody is looking."""
