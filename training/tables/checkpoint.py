"""What a checkpoint holds of a self-managed table: the name of its files."""

from pathlib import Path
from typing import Any

from training.tables.base import EmbeddingTable
from training.tables.files import TABLE_KEY, open_table, table_name
from training.tables.mapped import MappedTable


class TableCheckpoint:
    """Saves and restores a self-managed table with the checkpoints of its model.

    Checkpoints hold other tables as they hold any parameter, and this class then does nothing.

    Args:
        table: of the model.
        prefix: its name in the state dict of the model.
    """

    directory: Path | None = None
    """The directory of the checkpoints, which has to be visible to all ranks."""

    def __init__(self, table: EmbeddingTable, prefix: str) -> None:
        self._table, self._prefix = table, prefix
        self._saved: tuple[int, str] | None = None

    def state_names(self) -> list[str]:
        """Names in the model's state dict that the table manages itself."""
        return [f"{self._prefix}.{name}" for name in self._table.self_managed_state()]

    def save(self, checkpoint: dict[str, Any], global_step: int) -> None:
        """Writes the table and puts its name into a checkpoint instead of its state; a collective call.

        All checkpoints of one step name the same files.
        """
        if not self._table.is_self_managed:
            return
        assert self.directory is not None
        if self._saved is None or self._saved[0] != global_step:
            self._saved = (global_step, self._table.save(self.directory))
        checkpoint[TABLE_KEY] = self._saved[1]
        for name in self.state_names():
            checkpoint["state_dict"].pop(name, None)

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Reads the table that a checkpoint names, and completes the checkpoint's state dict.

        Raises:
            UserError: the checkpoint names no table, or the table is missing or damaged.
        """
        if not self._table.is_self_managed:
            return
        assert self.directory is not None
        self._table.load(self.directory, table_name(checkpoint, str(self.directory)))
        state = self._table.self_managed_state()
        checkpoint["state_dict"] |= {f"{self._prefix}.{name}": value for name, value in state.items()}


def map_table(checkpoint: dict[str, Any], directory: Path) -> MappedTable:
    """The table that a checkpoint of `directory` names, for look-ups alone.

    Raises:
        UserError: the checkpoint names no table, or the table is missing or damaged.
    """
    name = table_name(checkpoint, str(directory.parent))
    return MappedTable(open_table(directory, name).weight_RD, directory)
