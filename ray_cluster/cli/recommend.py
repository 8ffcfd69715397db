"""`passerelle recommend`: ask the running service."""

from typing import TYPE_CHECKING, Any

import click

from passerelle.errors import UserError
from ray_cluster.cli.console import json_option, k_option, print_json, print_table, stderr

if TYPE_CHECKING:
    from ray_cluster.client import ServiceClient

DEFAULT_URL = "http://127.0.0.1:8000"


@click.command()
@click.option("--user", metavar="ID", help="User id.")
@click.option(
    "--history", metavar="A,B,C", help="Item ids, oldest first, instead of what is stored for the user."
)
@click.option(
    "--user-feature",
    "user_features",
    multiple=True,
    metavar="NAME=VALUE",
    help="A feature of the user that the model reads.",
)
@click.option(
    "--context",
    "context",
    multiple=True,
    metavar="NAME=VALUE",
    help="A context feature of the request that the model reads.",
)
@k_option("How many items; the size of the playlist, if absent.")
@click.option("--url", default=DEFAULT_URL, show_default=True, help="The running service.")
@json_option
def command(
    user: str | None,
    history: str | None,
    user_features: tuple[str, ...],
    context: tuple[str, ...],
    k: int | None,
    url: str,
    as_json: bool,
) -> None:
    """Recommend items to a user or for a history, through the running service.

    Features that are given replace those that are stored for the user.

    \b
    passerelle recommend --user 42
    passerelle recommend --history 1193,661,914 -k 5
    passerelle recommend --history 1193,661 --user-feature gender=F --context device=mobile
    passerelle recommend --user 42 --url http://127.0.0.1:8080 --json
    """
    from ray_cluster.client import ServiceClient

    given = None if history is None else [part.strip() for part in history.split(",") if part.strip()]
    with ServiceClient(url) as client:
        answer = client.recommend(
            {
                "user_id": user,
                "history": given,
                "k": k,
                "user_features": _named(user_features, "--user-feature"),
                "context": {"features": _named(context, "--context")},
            }
        )
        if as_json:
            print_json(answer)
            return
        rows = item_rows(client, answer["items"])
    if answer["fallback"]:
        stderr.print(f"Nothing is known of this user: these are the items by {answer['fallback']}.")
    if answer["ignored_history"]:
        stderr.print(f"{answer['ignored_history']} ids of the history are not in the catalogue.")
    print_table(f"version {answer['model_version']}", ("item", "title", "score", "found by"), rows)
    stderr.print(
        ", ".join(f"{stage} {milliseconds:.1f} ms" for stage, milliseconds in answer["timings_ms"].items())
    )


def _named(pairs: tuple[str, ...], option: str) -> dict[str, Any] | None:
    """Returns the given values by name, as text: the service knows the kinds of its features."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise UserError(f"{option} {pair}: write it as name=value")
        values[name] = text
    return values or None


def _title(client: "ServiceClient", item_id: str | int) -> str:
    """Returns the title of an item; empty where there is none, or no answer."""
    try:
        return str(client.item(item_id)["title"] or "")
    except UserError:
        return ""


def item_rows(client: "ServiceClient", items: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Returns one table row for each item, with its title where the catalogue has one."""
    return [
        (
            item["item_id"],
            _title(client, item["item_id"]),
            float(item["score"]),
            ", ".join(f"{source['name']} #{source['rank']}" for source in item["sources"]),
        )
        for item in items
    ]
