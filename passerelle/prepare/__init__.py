"""Raw logs to a dataset: `find_source`, then `prepare`, or `prepare_table` for tables in memory.

A TOML file (`PrepareConfig`) says which files and columns; the presets in `presets/` are such files.
"""

from passerelle.prepare.config import PrepareConfig, load_prepare_config, preset_names
from passerelle.prepare.in_memory import ArrowTable, prepare_table
from passerelle.prepare.new_items import read_new_items
from passerelle.prepare.pipeline import prepare
from passerelle.prepare.quality import QualityReport, report_rows
from passerelle.prepare.sources import find_source

__all__ = [
    "ArrowTable",
    "PrepareConfig",
    "QualityReport",
    "find_source",
    "load_prepare_config",
    "prepare",
    "prepare_table",
    "preset_names",
    "read_new_items",
    "report_rows",
]
