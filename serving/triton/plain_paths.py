"""Folders under plain names, for Triton: its Python backend puts their paths into a line of the shell.

A space, a sign or an accent in the path of the model repository would keep every model from loading.
"""

import re
import shutil
import tempfile
from pathlib import Path

from passerelle.errors import UserError

_PLAIN = re.compile(r"[A-Za-z0-9_./+=@%:,-]+")


def is_plain(path: Path) -> bool:
    """Returns whether a shell takes a path as it is written."""
    return _PLAIN.fullmatch(str(path)) is not None


class PlainPaths:
    """Links of plain names to folders, in a temporary folder that is made when the first one is needed."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def link(self, folder: Path) -> Path:
        """Returns the folder itself where its path is plain, else a link to it.

        Raises:
            UserError: there is no plain temporary folder either.
        """
        if is_plain(folder):
            return folder
        link = self._temporary() / "models"
        link.symlink_to(folder, target_is_directory=True)
        return link

    def copy(self, folder: Path) -> Path:
        """Returns the folder itself where its path is plain, else a copy of it.

        Raises:
            UserError: there is no plain temporary folder either.
        """
        if is_plain(folder):
            return folder
        return Path(shutil.copytree(folder, self._temporary() / "backends"))

    def remove(self) -> None:
        """Removes the links and copies."""
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _temporary(self) -> Path:
        if self._folder is None:
            usual = Path(tempfile.gettempdir())
            parent = usual if is_plain(usual) else Path("/tmp")
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="passerelle-triton-", dir=parent))
            except OSError as error:
                raise UserError(
                    f"{parent}: cannot be written ({error.strerror}), and Triton takes no folder with a "
                    "space, a sign or an accent in its path: name a plain one in TMPDIR"
                ) from None
        return self._folder
