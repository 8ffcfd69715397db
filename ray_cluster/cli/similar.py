"""`passerelle similar`: items like one item, from the running service."""

import click

from ray_cluster.cli.console import json_option, k_option, print_json, print_table
from ray_cluster.cli.recommend import DEFAULT_URL, item_rows


@click.command()
@click.option("--item", required=True, metavar="ID", help="Item id.")
@k_option("How many items; 10 if absent, or as many as there are.")
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The running service.")
@json_option
def command(item: str, k: int | None, url: str, as_json: bool) -> None:
    """List the items most like one item, through the running service.

    \b
    passerelle similar --item 1193
    passerelle similar --item 1193 -k 5 --json
    """
    from ray_cluster.client import ServiceClient

    with ServiceClient(url) as client:
        answer = client.similar({"item_id": item, "k": k})
        if as_json:
            print_json(answer)
            return
        rows = item_rows(client, answer["items"])
    print_table(f"like {item}", ("item", "title", "cosine", "found by"), rows)
