"""`passerelle serve`: Triton and the Serve graph over one published bundle, until Ctrl-C."""

import json
import shlex
from pathlib import Path
from typing import cast

import click

from ray_cluster.cli.console import repository_option, stderr


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="HTTP port.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 for every interface.",
)
@click.option(
    "--topology",
    type=click.Choice(["fused", "staged"]),
    default="fused",
    show_default=True,
    help="One replica, or one a stage.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Processes that answer (of each stage).",
)
@click.option(
    "--triton",
    default="embedded",
    show_default=True,
    metavar="embedded|HOST:PORT",
    help="Where Triton listens for gRPC; `embedded` starts one here.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Playlists, rules, offers, events, limits (TOML, docs/serving.md).",
)
@repository_option
def command(
    bundle: Path,
    port: int,
    host: str,
    topology: str,
    replicas: int,
    triton: str,
    config: Path | None,
    repository: Path,
) -> None:
    """Serve a published BUNDLE over HTTP until Ctrl-C or SIGTERM, then stop every process that was started.

    \b
    passerelle serve artifacts/bundle
    passerelle serve artifacts/bundle --port 8080 --topology staged
    passerelle serve artifacts/bundle --replicas 4
    passerelle serve artifacts/bundle --triton triton.internal:8001
    passerelle serve artifacts/bundle --config shop.toml
    """
    from passerelle.bundle import open_bundle
    from ray_cluster.publishing import published_version
    from ray_cluster.service import Service, ServiceOptions
    from serving.config import load_serving_config
    from serving.graph import Topology

    serving = load_serving_config(config)
    opened = open_bundle(bundle)
    version = published_version(opened, repository)
    example = json.dumps({"user_id": opened.reference().user_ids()[0], "k": 10}, ensure_ascii=False)
    address = None if triton == "embedded" else triton
    options = ServiceOptions(
        topology=cast(Topology, topology),
        host=host,
        port=port,
        triton=address,
        replicas=replicas,
        serving=serving,
    )
    with Service(bundle, repository, version, options) as service:
        stderr.print(
            f"{opened.manifest.model} version {version} answers at {service.url} (API: {service.url}/docs). "
            "Ctrl-C stops it."
        )
        click.echo(
            f"curl -s {service.url}/v1/recommend -H 'content-type: application/json' -d "
            f"{shlex.quote(example)}"
        )
        try:
            service.watch()
        except KeyboardInterrupt:
            stderr.print("stopping")
