"""`passerelle publish`: a bundle into the model repository, after the parity gate."""

from pathlib import Path

import click

from ray_cluster.cli.console import json_option, print_json, print_table, progress_bars, repository_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@repository_option
@json_option
def command(bundle: Path, repository: Path, as_json: bool) -> None:
    """Publish BUNDLE as the active version of a Triton model repository, once it answers as training did.

    The gate serves the bundle from a private copy, with a real Triton and the real Serve graph, and compares
    query vectors, scores and the ten best items of the bundle's reference users.
    When it fails, the version that was active stays so, and nothing is left behind.
    The repository may be empty or absent: the configuration of the models is then
    written too, with the bundle's dims.

    \b
    passerelle publish artifacts/bundle
    passerelle publish artifacts/bundle --repository /srv/models --json
    """
    from ray_cluster.publishing import publish

    with progress_bars() as progress:
        publication = publish(bundle, repository, progress)
    if as_json:
        print_json(publication.model_dump())
        return
    rows = [
        (layer, name.replace("_", " "), f"{value:.3g}")
        for layer, figures in publication.parity.items()
        for name, value in figures.items()
    ]
    title = f"{bundle} is version {publication.version} of {repository}, and active"
    print_table(title, ("layer", "against training", "figure"), rows)
