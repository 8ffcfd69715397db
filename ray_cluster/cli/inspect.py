"""`passerelle inspect`: what a directory holds, and whether its files are whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ray_cluster.cli.console import json_option, print_json, print_table

_APART = ("files", "config", "quality", "kind")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DATASET|RUN|BUNDLE")
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Show what a dataset, a run or a bundle holds, after verifying the checksum of every file.

    \b
    passerelle inspect artifacts/dataset
    passerelle inspect artifacts/bundle --json
    """
    values = verified(directory)
    if as_json:
        print_json({"path": str(directory), **values})
        return
    print_lines(
        f"{values['kind']} {directory}",
        flat({key: value for key, value in values.items() if key not in _APART}),
    )
    if values["kind"] == "dataset":
        from passerelle.prepare import QualityReport, report_rows

        print_lines("quality", report_rows(QualityReport.model_validate(values["quality"])))
    print_lines("configuration", flat(values.get("config", {})))
    sizes = [
        (name, f"{entry['size_bytes']:,}", entry["sha256"][:12]) for name, entry in values["files"].items()
    ]
    print_table("files, checksums verified", ("file", "bytes", "sha256"), sizes)


def verified(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a directory as plain values, after a check of every file it names.

    Raises:
        UserError: no manifest, an unknown format, or a file is missing, truncated or altered.
    """
    from passerelle.bundle import BundleManifest
    from passerelle.dataset import DatasetManifest
    from passerelle.manifest import Manifest, kind_of, open_manifest, read_manifest

    known: dict[str, type[Manifest]] = {model.KIND: model for model in (DatasetManifest, BundleManifest)}
    model = known.get(kind_of(directory))
    return (
        read_manifest(directory) if model is None else open_manifest(directory, model).model_dump(mode="json")
    )


def flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Returns nested values as lines of a dotted name and a text; empty values are left out, a list of named
    elements is keyed by their names.
    """
    if isinstance(value, list) and any(isinstance(element, dict) for element in value):
        value = {
            element.get("name", position): _without_name(element) for position, element in enumerate(value)
        }
    if isinstance(value, dict):
        return [
            row
            for name, nested in value.items()
            for row in flat(nested, f"{key}.{name}" if key else str(name))
        ]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [] if value is None or not text else [(key, text)]


def _without_name(element: dict[str, Any]) -> Any:
    rest = {key: value for key, value in element.items() if key != "name" and value is not None}
    return next(iter(rest.values())) if len(rest) == 1 else rest


def print_lines(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a title and one aligned line for each row; long texts are left whole."""
    width = max((len(name) for name, _ in rows), default=0)
    click.echo("\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows), ""]))
