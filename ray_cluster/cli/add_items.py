"""`passerelle add-items BUNDLE ITEMS --out NEW`."""

from pathlib import Path

import click

from ray_cluster.cli.console import json_option, print_json, progress_bars


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("items", type=click.Path(path_type=Path))
@click.option(
    "--description",
    metavar="TOML",
    help="What `passerelle prepare` was given: ITEMS is a file like its items.files.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle directory to create.")
@click.option("--overwrite", is_flag=True, help="Replace the new bundle if it exists.")
@json_option
def command(
    bundle: Path, items: Path, description: str | None, out: Path, overwrite: bool, as_json: bool
) -> None:
    """Write a bundle with new items, which its candidate tower knows by their features: nothing is trained.

    ITEMS is a file of your own, read as the --description of your logs says; or, without one, a Parquet file
    with item_id and the item features as `passerelle inspect BUNDLE` names them.
    Publish and serve the new bundle like any other.
    Values that training never saw are counted and told; an item that is there already is an error.

    \b
    Examples:
      passerelle add-items artifacts/bundle new_products.csv --description shop.toml --out artifacts/bundle-2
      passerelle add-items artifacts/bundle new_items.parquet --out artifacts/bundle-2
      passerelle add-items artifacts/bundle new_items.parquet --out artifacts/bundle-2 --json
    """
    from passerelle.prepare import load_prepare_config, read_new_items
    from training.export.new_items import add_items, read_items

    with progress_bars() as progress:
        table = (
            read_items(items)
            if description is None
            else read_new_items(load_prepare_config(description), items, progress)
        )
        added = add_items(bundle, table, out, where=str(items), overwrite=overwrite, progress=progress)
    manifest = added.bundle.manifest
    if as_json:
        unknown = {"unknown_values": added.unknown_values}
        print_json(
            {
                "bundle": str(out),
                "bundle_id": manifest.bundle_id,
                "added": added.num_added,
                "items": manifest.num_items,
                **unknown,
            }
        )
        return
    click.echo(
        f"{out}: bundle {manifest.bundle_id}, {added.num_added} items added, {manifest.num_items} in all"
    )
    for column, count in added.unknown_values.items():
        click.echo(f"  {count} values of {column} that training never saw count as its unknown one")
