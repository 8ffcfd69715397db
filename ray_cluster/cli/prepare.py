"""`passerelle prepare`: raw logs to a dataset."""

from pathlib import Path

import click

from ray_cluster.cli.console import (
    NamingCommand,
    json_option,
    print_json,
    print_table,
    progress_bars,
    set_option,
)


def _preset_names() -> list[str]:
    from passerelle.prepare import preset_names

    return preset_names()


@click.command(cls=NamingCommand, names=_preset_names)
@click.argument("preset_or_toml")
@click.option("--source", type=click.Path(path_type=Path), metavar="DIR", help="Folder with the raw files.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DATASET", help="Directory to write."
)
@click.option("--overwrite", is_flag=True, help="Replace DATASET where it exists.")
@set_option
@json_option
def command(
    preset_or_toml: str,
    source: Path | None,
    out: Path,
    overwrite: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Turn raw logs (csv, parquet, jsonl) into a memory-mapped dataset, with a data-quality report.

    PRESET_OR_TOML is {names}, or the path of a TOML file that describes your own logs.
    Without --source, the files of a preset are looked for in $PASSERELLE_DATA, in ../shared/data
    and in the cache, and then downloaded where the archive's checksum is known; those of a TOML
    file are looked for beside it.

    \b
    passerelle prepare movielens-1m --out artifacts/dataset
    passerelle prepare movielens-100k --source ~/data/ml-100k --out artifacts/dataset --overwrite
    passerelle prepare logs.toml --out artifacts/dataset --set on_bad_rows=drop
    """
    from passerelle.prepare import QualityReport, find_source, load_prepare_config, prepare, report_rows

    config = load_prepare_config(preset_or_toml, overrides)
    with progress_bars() as progress:
        folder = find_source(config, source, Path(preset_or_toml).parent, progress)
        dataset = prepare(config, folder, out, overwrite=overwrite, progress=progress)
    manifest = dataset.manifest
    if as_json:
        print_json(
            {"out": str(out), "source": str(folder), "name": manifest.name, "quality": manifest.quality}
        )
        return
    report = QualityReport.model_validate(manifest.quality)
    print_table(f"{manifest.name}: {folder} -> {out}", ("what", "figure"), report_rows(report))
