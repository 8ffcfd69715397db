"""The callback by which long work reports its progress."""

from typing import Protocol


class Progress(Protocol):
    """Called with the name of a stage, the amount done and the total."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """Ignore the progress: the default."""
